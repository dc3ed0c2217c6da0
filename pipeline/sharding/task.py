"""One preparation task: a pure function from a shard's plan to its files and its share of the statistics."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.dataset.index import index_path
from pipeline.dataset.manifest import Shard
from pipeline.dataset.report import ReportRow
from pipeline.dataset.shards import describe, write_shard
from pipeline.dataset.work import versions
from pipeline.executors.local import count_image
from pipeline.images.codec import DecodeError, convert
from pipeline.images.statistics import Moments
from pipeline.sharding.duplicates import NO_DIGEST, HeldOut, digest_of, store_held_out, unhashed
from pipeline.sharding.plan import Plan, ShardPlan, read_plan, read_shard_plan, refuse_versions
from pipeline.sharding.reader import display, place_in_source, read_samples
from pipeline.sharding.result import ShardResult, store_result
from pipeline.sources.base import Container, Sample
from pipeline.sources.spool import needs_spool, spool
from pipeline.storage.atomic import make_folder
from pipeline.storage.base import Store
from pipeline.storage.locks import Lease
from pipeline.storage.remote import RemoteStore
from pipeline.storage.scratch import make_private_folder

# The largest file that is read: four channels of 16 bits for each allowed pixel, plus metadata.
_BYTES_PER_PIXEL = 8
_METADATA = 2**26


@dataclass(frozen=True)
class ShardJob:
    """Folders of a job, with which a worker on any machine finds the source and the plan.

    Attributes:
        source: The source; with an absolute path, as workers may have another current folder.
        out: The dataset; likewise.
        scratch: Folder on the worker's machine that belongs to this job alone, for spooled containers and for
            shards before their upload to a bucket. It lies in `out`, or only this user can enter it.
        lease: Shows that the job still holds the lock of `out`; None where it has none.
    """

    source: Store
    out: Store
    scratch: Path
    lease: Lease | None = None

    @property
    def spool(self) -> Path:
        """Folder of spooled containers on the worker's machine."""
        return self.scratch / "spool"

    def open_scratch(self) -> None:
        """Create the scratch folder on this machine, if it is not there.

        Raises:
            UsageError: Other users can write to it.
        """
        if self.out.local is None or not self.scratch.is_relative_to(self.out.local):
            make_private_folder(self.scratch)

    def check(self) -> None:
        """Raise TakenOverError where another job has taken over `out`; called before it is written to."""
        if self.lease:
            self.lease.check()


def run_spool(job: ShardJob, numbered: tuple[int, Container]) -> None:
    """Spool a container of the source, given with its number; runs in a worker.

    Raises as `pipeline.sources.spool.spool` and `ShardJob.open_scratch`.
    """
    job.check()
    job.open_scratch()
    spool(job.source, *numbered, job.spool)


def run_hash(job: ShardJob, name: str) -> int:
    """Hash the files of a held-out shard, unless another slice has done it; runs in a worker.

    Returns:
        The number of its images.

    Raises:
        UsageError: The plan or a container of the source is missing or damaged.
        TakenOverError: Another job has taken over the output.
        RunError: The output cannot be written.
    """
    job.check()
    plan = read_plan(job.out)
    (summary,) = (shard for shard in plan.shards if shard.name == name)
    if not unhashed(job.out, [summary]):
        return summary.samples
    if any(map(needs_spool, plan.containers)):
        job.open_scratch()
    shard = read_shard_plan(job.out, name)
    digests = dict.fromkeys((sample.key for sample in shard.samples), NO_DIGEST)
    for sample, data in _read(job, plan, shard):
        count_image()
        if not isinstance(data, DecodeError):
            digests[sample.key] = digest_of(data)
    job.check()
    store_held_out(job.out, name, digests.values())
    return summary.samples


def run_shard(job: ShardJob, name: str) -> ShardResult:
    """Make the shard `name` of the job's plan and store it and its result; runs in a worker.

    Images are read in the order of the source, and written in the order of the plan.

    Raises:
        UsageError: The plan or a container of the source is missing or damaged, or other users can write to
            the scratch folder.
        TakenOverError: Another job has taken over the output.
        RunError: The output cannot be written, or library versions differ from the plan's.
    """
    job.check()
    plan = read_plan(job.out)
    if job.out.local is None or any(map(needs_spool, plan.containers)):
        job.open_scratch()
    options, found = plan.options, versions()
    refuse_versions(job.out, plan, found, "this machine")
    shard = read_shard_plan(job.out, name)
    measured = shard.split == "train"
    held_out = HeldOut(job.out, plan) if measured and options.drop_duplicates else None
    moments = Moments.for_square(options.size) if measured and options.mode == "square" else Moments()
    digests = dict.fromkeys((sample.key for sample in shard.samples), NO_DIGEST)
    jpegs: dict[str, bytes] = {}
    report_rows: list[ReportRow] = []
    for sample, data in _read(job, plan, shard):
        count_image()
        path = display(plan.containers, sample)
        try:
            if isinstance(data, DecodeError):
                raise data
            digest = digest_of(data)
            if held_out and (same := held_out.find(digest)):
                report_rows.append(ReportRow(path, f"the same bytes as {same}", "left out"))
                continue
            image = convert(
                data,
                options.size,
                mode=options.mode,
                quality=options.quality,
                max_megapixels=options.max_megapixels,
                exif_rotate=options.exif_rotate,
            )
        except DecodeError as error:
            report_rows.append(ReportRow(path, str(error), "skipped"))
            continue
        if image.repair:
            report_rows.append(ReportRow(path, image.repair, "repaired"))
        if measured:
            moments.add(image.pixels)
        jpegs[sample.key] = image.jpeg
        digests[sample.key] = digest
    job.check()
    result = ShardResult(
        name=name,
        plan=plan.digest,
        shard=_write_tar(job, shard, plan.label_width, jpegs),
        report_rows=tuple(report_rows),
        labels=dict(sorted(Counter(s.label for s in shard.samples if s.key in jpegs).items())),
        versions=found,
        held_out=held_out.checksum if held_out else "",
        image_sum=moments.image_sum is not None,
        images=moments.images,
        count=moments.count,
        sums=moments.sums.tolist(),
        products=moments.products.tolist(),
    )
    job.check()
    store_result(job.out, result, moments, b"".join(digests.values()))
    return result


def _read(job: ShardJob, plan: Plan, shard: ShardPlan) -> Iterator[tuple[Sample, bytes | DecodeError]]:
    """Yield the samples of a shard, in the order of the source, with their bytes or why there are none."""
    largest = int(plan.options.max_megapixels * 1e6 * _BYTES_PER_PIXEL) + _METADATA
    samples = sorted(shard.samples, key=place_in_source)
    files = read_samples(job.source, plan.containers, job.spool, samples, largest)
    yield from zip(samples, files, strict=True)


def _write_tar(job: ShardJob, shard: ShardPlan, label_width: int, jpegs: dict[str, bytes]) -> Shard | None:
    """Write the images that were not skipped, in the plan's order; upload the tar if `out` is a bucket.

    Args:
        job: Folders of the job.
        shard: Plan of the shard.
        label_width: Number of digits of the labels.
        jpegs: Key → JPEG of each image that was not skipped.

    Returns:
        The manifest's record of the tar, or None if all images were skipped.
    """
    with ExitStack() as stack:
        root = job.out.local
        if root is None:
            # A folder for this attempt alone: another attempt of the same task may run on this machine.
            folder = tempfile.TemporaryDirectory(prefix="shard-", dir=job.scratch, ignore_cleanup_errors=True)
            root = Path(stack.enter_context(folder))
        tar = root / f"{shard.name}.tar"
        make_folder(tar.parent)
        with write_shard(tar, label_width) as writer:
            for sample in shard.samples:
                if sample.key in jpegs:
                    writer.add(sample.key, jpegs[sample.key], sample.label)
        if not jpegs:
            return None
        described = describe(root, tar, len(jpegs))
        if isinstance(job.out, RemoteStore):
            job.out.upload(tar, described.name)
            job.out.upload(index_path(tar), f"{shard.name}.idx")
        return described
