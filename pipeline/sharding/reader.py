"""Samples' bytes, wherever they lie: files, members of tars, or containers that were spooled."""

import errno
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from pipeline.sources.base import FILE, Container, Sample
from pipeline.sources.spool import needs_spool, spool, spooled_span
from pipeline.storage.base import ByteRange, Store
from pipeline.storage.local import LocalStore

# Images read ahead of the decoder; from a bucket they come at the same time.
_BATCH = 32


def in_reading_order(samples: Sequence[Sample]) -> list[int]:
    """Places of samples in the order in which their bytes lie in the source: a disk's arm moves one way."""
    return sorted(
        range(len(samples)),
        key=lambda k: (samples[k].container, samples[k].offset, samples[k].path),
    )


def read_samples(
    source: Store,
    containers: Sequence[Container],
    spool_folder: Path,
    samples: Sequence[Sample],
    largest: int = sys.maxsize,
) -> Iterator[bytes | OSError]:
    """Yield samples' bytes in the order given; from a bucket, the next batch while the last is worked on.

    A container that must be spooled and is not, on this machine, is spooled first. A file that cannot be
    read gives its error in its place.

    Args:
        source: the source's folder.
        containers: that the samples refer to.
        spool_folder: where spooled containers lie.
        samples: in the order in which they are wanted.
        largest: bytes above which a file is not read but gives an error.
    """
    spooled = LocalStore(str(spool_folder))
    for number in sorted({s.container for s in samples if s.container != FILE}):
        if needs_spool(containers[number]):
            spool(source, number, containers[number], spool_folder)

    def located(sample: Sample) -> tuple[Store, ByteRange]:
        if sample.container == FILE:
            return source, ByteRange(sample.path)
        container = containers[sample.container]
        if needs_spool(container):
            span = spooled_span(spool_folder, sample.container, container, sample.offset, sample.size)
            return spooled, span
        return source, ByteRange(container.path, sample.offset, sample.size)

    def measured(sample: Sample) -> tuple[Store, bool, ByteRange]:
        store, span = located(sample)
        return store, max(span.size or 0, sample.size) > largest, span

    def read(batch: Sequence[Sample]) -> Iterator[bytes | OSError]:
        placed = ((*located(sample), sample.size) for sample in batch)
        for (store, too_large), group in groupby(
            placed, lambda p: (p[0], max(p[1].size or 0, p[2]) > largest)
        ):
            spans = [span for _, span, _ in group]
            if too_large:
                yield from (OSError(errno.EFBIG, f"larger than {largest:,} bytes", s.path) for s in spans)
            else:
                yield from store.read_many(spans)

    if source.local is not None:  # here the kernel reads ahead, and a thread would cost more than it gains
        yield from read(samples)
        return
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(list, read(samples[:_BATCH]))
        for start in range(_BATCH, len(samples) + _BATCH, _BATCH):
            current, ahead = ahead, thread.submit(list, read(samples[start : start + _BATCH]))
            yield from current.result()


def display(containers: Sequence[Container], sample: Sample) -> str:
    """A sample's place for a person: its path below the source's root, through its container."""
    if sample.container == FILE:
        return sample.path
    return f"{containers[sample.container].path}/{sample.path}"
