"""Read the bytes of samples from files, members of tars, or spooled containers."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from pipeline.images.pillow import DecodeError
from pipeline.sources.base import FILE, UNKNOWN, Container, Sample
from pipeline.sources.spool import needs_spool, spool, spooled_span
from pipeline.storage.base import ByteRange, Store
from pipeline.storage.local import LocalStore

# Images that are read ahead of the decoder; from a bucket they are requested together.
_BATCH = 32


def place_in_source(sample: Sample) -> tuple[int, int, str]:
    """Return a sort key: samples sorted by it lie one after the other in the source."""
    return sample.container, sample.offset, sample.path


def read_samples(
    source: Store,
    containers: Sequence[Container],
    spool_folder: Path,
    samples: Sequence[Sample],
    largest: int = sys.maxsize,
) -> Iterator[bytes | DecodeError]:
    """Yield the bytes of samples in the given order, or a DecodeError with the reason why there are none.

    Containers that need spooling and are not spooled on this machine are spooled first. From a bucket, the
    next batch is read while the caller works on the last one.

    Args:
        source: Folder of the source.
        containers: Containers that the samples refer to.
        spool_folder: Folder of spooled containers.
        samples: Samples in the order in which they are to be read.
        largest: Size in bytes above which an image is not read.

    Raises:
        UsageError: A container is damaged or has changed since it was listed.
        RunError: A container cannot be read or spooled.
    """
    spooled = LocalStore(str(spool_folder))
    for number in sorted({s.container for s in samples if s.container != FILE}):
        if needs_spool(containers[number]):
            spool(source, number, containers[number], spool_folder)

    def located(sample: Sample) -> tuple[Store | str, ByteRange]:
        """Return where a sample's bytes are; instead of the store, why they are not read."""
        store, span = source, ByteRange(sample.path)
        if sample.offset < 0:
            return "a link to what is not in the archive", span
        if sample.container != FILE:
            container = containers[sample.container]
            span = ByteRange(container.path, sample.offset, sample.size)
            if needs_spool(container):
                store = spooled
                span = spooled_span(spool_folder, sample.container, container, sample.offset, sample.size)
        return (
            f"larger than {largest:,} bytes" if max(span.size or 0, sample.size) > largest else store
        ), span

    def read(batch: Sequence[Sample]) -> Iterator[bytes | OSError]:
        for store, group in groupby(map(located, batch), itemgetter(0)):
            if isinstance(store, str):
                yield from (OSError(store) for _ in group)
            else:
                yield from store.read_many([span for _, span in group])

    def read_ahead() -> Iterator[bytes | OSError]:
        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(list, read(samples[:_BATCH]))
            for start in range(_BATCH, len(samples) + _BATCH, _BATCH):
                current, ahead = ahead, thread.submit(list, read(samples[start : start + _BATCH]))
                yield from current.result()

    # On this machine the kernel reads ahead; a thread would cost more than it gains.
    found = read_ahead() if source.local is None else read(samples)
    for sample, data in zip(samples, found, strict=True):
        if isinstance(data, OSError):
            yield DecodeError(f"unreadable file: {data.strerror or data}")
        elif sample.size not in (UNKNOWN, len(data)):
            yield DecodeError(f"has {len(data)} bytes now, but {sample.size} when it was listed")
        else:
            yield data


def display(containers: Sequence[Container], sample: Sample) -> str:
    """Return a sample's path for messages: below the source's root, with its container in front."""
    if sample.container == FILE:
        return sample.path
    return f"{containers[sample.container].path}/{sample.path}"
