"""Which sample stopped a loader, and what to do about it."""

from collections.abc import Sequence

from pipeline.dataset.dataset import Dataset
from pipeline.errors import RunError
from pipeline.images.codec import decode
from pipeline.images.pillow import DecodeError
from pipeline.loader.dali.segment import RawSample, Segment, dali_message


def diagnose_batch(error: Exception, dataset: Dataset, segment: Segment, batch: int) -> RunError:
    """One line for a batch that failed: shard, key and bytes of the sample, and what checks the rest.

    DALI names the file of some errors only. The batch is read once more, without decoding it there, and
    each of its samples looked at, as preparation does and as DALI does.

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
    problems = ((sample, _fault(sample, dataset) or segment.problem(sample.jpeg)) for sample in samples)
    for sample, problem in problems:
        if problem:
            place, end = dataset.store.url_of(sample.shard), sample.offset + len(sample.jpeg)
            if sample.tar != place:
                remedy = f"delete that copy of {place}, and it is brought anew; {remedy}"
            return RunError(
                f"{sample.tar}: the sample {sample.key} (bytes {sample.offset:,} to {end:,}) is damaged: "
                f"{problem}; {remedy}"
            )
    shards = ", ".join(dict.fromkeys(sample.shard for sample in samples))
    where = f" in {shards}" if shards else ""
    return RunError(f"{dataset.url}: the loader stopped{where}: {dali_message(error)}; {remedy}")


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
