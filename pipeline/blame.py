"""Which sample stopped a loader, and what to do about it."""

from collections.abc import Sequence

from pipeline.codec import decode
from pipeline.dataset import Dataset
from pipeline.errors import RunError
from pipeline.pillow_codec import DecodeError
from pipeline.segment import RawSample, Segment


def blame(error: Exception, dataset: Dataset, segment: Segment, batch: int) -> RunError:
    """One line for a batch that failed: shard, key and bytes of the sample, and what checks the rest.

    DALI names the file of some errors only. The batch is read once more, without decoding it there, and
    each of its samples looked at as preparation does.

    Args:
        error: what DALI raised, or what is wrong with the batch.
        dataset: that the segment is of.
        segment: of which a batch failed.
        batch: the number of that batch in the segment.
    """
    remedy = f"`alexnet-prep verify {dataset.url}` names everything that changed since it was written"
    try:
        samples: Sequence[RawSample] = segment.raw_batch(batch)
    except RuntimeError:  # it cannot even be read
        samples = ()
    for sample in samples:
        if (fault := _fault(sample, dataset)) is not None:
            end = sample.offset + len(sample.jpeg)
            return RunError(
                f"{dataset.store.place(sample.shard)}: the sample {sample.key} (bytes {sample.offset:,} to "
                f"{end:,}) is damaged: {fault}; {remedy}"
            )
    return RunError(f"{dataset.url}: the loader stopped: {first_line(error)}; {remedy}")


def _fault(sample: RawSample, dataset: Dataset) -> str | None:
    try:
        decode(sample.jpeg, max_megapixels=float("inf"))
    except DecodeError as error:
        return str(error)
    digits = sample.label
    if dataset.manifest.adopted:  # text may stand before the number
        digits = digits[len(digits.rstrip(b"0123456789")) :]
    if not digits.isdigit():
        return f"its label is {sample.label[-16:]!r}, no number"
    if int(digits) >= len(dataset.classes):
        return f"its label is {int(digits)}, but the manifest names {len(dataset.classes)} classes"
    return None


def first_line(error: Exception) -> str:
    """What DALI says is wrong, without its stack."""
    text = str(error).partition("encountered:")[2] or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [line for line in lines if line.startswith("[")] or lines
    return useful[0][:300] if useful else type(error).__name__
