"""Find the sample that made a batch fail, and write an error message that names it."""

from collections.abc import Sequence

from pipeline.dataset.dataset import Dataset
from pipeline.errors import RunError
from pipeline.host import refuse_too_many_open_files
from pipeline.images.codec import decode
from pipeline.images.pillow import DecodeError
from pipeline.loader.dali.segment import RawSample, Segment, dali_message


def diagnose_batch(error: Exception, dataset: Dataset, segment: Segment, batch: int) -> RunError:
    """Return an error of one line with the failing sample's shard, key, byte range and problem.

    DALI names the file only in some of its errors. So the batch is read again without decoding, and each
    sample is decoded on its own, by the strict decoder of preparation and then by DALI. If no sample fails,
    the message has DALI's error and the batch's shards.

    Args:
        error: Exception that DALI raised, or one that says what is wrong with the batch.
        dataset: Dataset that the segment belongs to.
        segment: Segment whose batch failed.
        batch: Number of the batch in the segment, counted from 0.
    """
    refuse_too_many_open_files(error)
    remedy = f"`alexnet-prep verify {dataset.url}` lists everything that changed since it was written"
    try:
        samples: Sequence[RawSample] = segment.raw_batch(batch)
    except RuntimeError:  # the batch cannot even be read
        samples = ()
    problems = ((sample, _fault(sample, dataset) or segment.problem(sample.jpeg)) for sample in samples)
    for sample, problem in problems:
        if problem:
            url, end = dataset.store.url_of(sample.shard), sample.offset + len(sample.jpeg)
            if sample.tar != url:
                remedy = f"delete this cached copy of {url}, and it is fetched again; {remedy}"
            return RunError(
                f"{sample.tar}: the sample {sample.key} (bytes {sample.offset:,} to {end:,}) is damaged: "
                f"{problem}; {remedy}"
            )
    shards = ", ".join(dict.fromkeys(sample.shard for sample in samples))
    where = f" in {shards}" if shards else ""
    return RunError(f"{dataset.url}: the loader stopped{where}: {dali_message(error)}; {remedy}")


def _fault(sample: RawSample, dataset: Dataset) -> str | None:
    """Return what is wrong with a sample's image or label, or None."""
    try:
        decode(sample.jpeg, max_megapixels=float("inf"))
    except DecodeError as error:
        return str(error)
    digits = sample.label
    if dataset.manifest.adopted:  # text may precede the number
        digits = digits[len(digits.rstrip(b"0123456789")) :]
    if not digits.isdigit():
        return f"its label is {sample.label[-16:]!r}, not a number"
    if int(digits) >= len(dataset.classes):
        return f"its label is {int(digits)}, but the manifest names {len(dataset.classes)} classes"
    return None
