"""Read the bytes of samples from files, members of tars, or spooled containers."""

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

# Images that are read ahead of the decoder; from a bucket they are requested together.
_BATCH = 32


def in_reading_order(samples: Sequence[Sample]) -> list[int]:
    """Return indices of samples in the order of their bytes in the source, for sequential reads."""
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
    """Yield the bytes of samples in the given order; an image that cannot be read yields its OSError.

    Containers that need spooling and are not spooled on this machine are spooled first. From a bucket, the
    next batch is read while the caller works on the last one.

    Args:
        source: Folder of the source.
        containers: Containers that the samples refer to.
        spool_folder: Folder of spooled containers.
        samples: Samples in the order in which they are to be read.
        largest: Size in bytes above which an image is not read but yields an OSError.

    Raises:
        UsageError: A container is damaged or has changed since it was listed.
        RunError: A container cannot be read or spooled.
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

    if source.local is not None:  # the kernel reads ahead; a thread would cost more than it gains
        yield from read(samples)
        return
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(list, read(samples[:_BATCH]))
        for start in range(_BATCH, len(samples) + _BATCH, _BATCH):
            current, ahead = ahead, thread.submit(list, read(samples[start : start + _BATCH]))
            yield from current.result()


def display(containers: Sequence[Container], sample: Sample) -> str:
    """Return a sample's path for messages: below the source's root, with its container in front."""
    if sample.container == FILE:
        return sample.path
    return f"{containers[sample.container].path}/{sample.path}"
