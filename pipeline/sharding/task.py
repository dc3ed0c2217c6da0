"""One preparation task: a pure function from a shard's plan to its files and its share of the statistics."""

import io
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.index import index_path
from pipeline.dataset.manifest import Shard, to_json
from pipeline.dataset.report import ReportRow
from pipeline.dataset.tar import describe, write_shard
from pipeline.dataset.work import WORK, versions
from pipeline.errors import RunError
from pipeline.executors.local import count_image
from pipeline.images import codec
from pipeline.images.statistics import Moments
from pipeline.sharding.plan import Options, Plan, ShardPlan, read_plan, read_shard_plan
from pipeline.sharding.reader import display, in_reading_order, read_samples
from pipeline.sources.base import UNKNOWN, Sample
from pipeline.sources.spool import spool
from pipeline.storage.atomic import make_folder
from pipeline.storage.base import ByteRange, Store
from pipeline.storage.open import open_store
from pipeline.storage.remote import RemoteStore

RESULTS = f"{WORK}/results"
"""Folder of the finished shards' results, below the dataset's."""
# The largest file that is read: four channels of 16 bits for each allowed pixel, plus metadata.
_BYTES_PER_PIXEL = 8
_METADATA = 2**26


@dataclass(frozen=True)
class ShardResult:
    """Result of one finished shard: the content of `.work/results/NAME.json`, written after the shard.

    Attributes:
        name: Name of the shard, such as `train/train-000000`.
        plan: Digest of the plan that it was made for.
        shard: Manifest record of the tar, or None if every image of it was skipped.
        report_rows: Rows for report.csv, in the order of the images in the source.
        labels: Label → number of samples written.
        versions: Versions of the libraries that made it, and the machine's architecture.
        image_sum: Whether the sum of its images is stored beside it, as NAME.npy.
        images, count, sums, products: Integer sums over the training pixels; see
            `pipeline.images.statistics.Moments`.
    """

    name: str
    plan: str
    shard: Shard | None
    report_rows: tuple[ReportRow, ...]
    labels: dict[int, int]
    versions: dict[str, str]
    image_sum: bool = False
    images: int = 0
    count: int = 0
    sums: list[int] = field(default_factory=list)
    products: list[list[int]] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Number of images that were left out."""
        return sum(report_row.action == "skipped" for report_row in self.report_rows)


@dataclass(frozen=True)
class ShardJob:
    """Paths of a job, with which a worker on any machine finds the source and the plan.

    Attributes:
        source: Path or URL of the source.
        out: Path or URL of the dataset.
        scratch: Folder on the worker's machine that belongs to this job alone, for spooled containers and for
            shards before their upload to a bucket.
    """

    source: str
    out: str
    scratch: str

    @property
    def spool(self) -> Path:
        """Folder of spooled containers on the worker's machine."""
        return Path(self.scratch) / "spool"


def run_shard(job: ShardJob, name: str) -> ShardResult:
    """Make the shard `name` of the job's plan and store it and its result; runs in a worker.

    Raises:
        UsageError: The plan or a container of the source is missing or damaged.
        RunError: The output cannot be written, or library versions differ from the plan's.
    """
    out, plan = open_store(job.out), _plan_of(job.out)
    refuse_versions(out, plan, versions(), "this machine")
    return run_task(job, out, plan, read_shard_plan(out, name))


def run_task(job: ShardJob, out: Store, plan: Plan, shard: ShardPlan) -> ShardResult:
    """Decode, scale, encode and store a shard's images, and store its result with their moments.

    Images are read in the order of the source, and written in the order of the plan.
    """
    converter = _Converter(plan.options, measured=shard.split == "train")
    order = in_reading_order(shard.samples)
    samples = [shard.samples[k] for k in order]
    largest = int(plan.options.max_megapixels * 1e6 * _BYTES_PER_PIXEL) + _METADATA
    read = read_samples(open_store(job.source), plan.containers, job.spool, samples, largest)
    stored: dict[int, bytes] = {}
    for k, sample, data in zip(order, samples, read, strict=True):
        count_image()
        if (jpeg := converter.convert(display(plan.containers, sample), sample, data)) is not None:
            stored[k] = jpeg
    labels = Counter(shard.samples[k].label for k in stored)
    moments = converter.moments
    result = ShardResult(
        shard.name,
        plan.digest,
        _write_tar(job, out, shard, plan.label_width, stored),
        tuple(converter.report_rows),
        dict(sorted(labels.items())),
        versions(),
        moments.image_sum is not None,
        moments.images,
        moments.count,
        moments.sums.tolist(),
        moments.products.tolist(),
    )
    _write_result(out, shard.name, result, moments)
    return result


def refuse_versions(out: Store, plan: Plan, found: dict[str, str], where: str) -> None:
    """Raise RunError if library versions differ from the plan's: they could decode or encode other bytes.

    Args:
        out: Folder of the dataset, for the message.
        plan: Plan of the job.
        found: Library name → version that was found.
        where: Where it was found, for the message: a shard's name or "this machine".

    Raises:
        RunError: A version differs; the message names each.
    """
    differ = [f"{k} {found.get(k)} instead of {v}" for k, v in plan.versions.items() if found.get(k) != v]
    if differ:
        raise RunError(
            f"{out}: {where} has {', '.join(differ)}, and other versions may give other bytes; "
            "install the same, or start again in another folder"
        )


def run_spool(job: ShardJob, number: int) -> None:
    """Spool container `number` of the source; runs in a worker. Raises as `pipeline.sources.spool.spool`."""
    container = _plan_of(job.out).containers[number]
    spool(open_store(job.source), number, container, job.spool)


def read_result(out: Store, name: str) -> tuple[ShardResult, Moments]:
    """Read the result of the finished shard `name`, and its moments.

    Raises:
        RunError: The result cannot be read, or is from another release.
    """
    try:
        result = msgspec.json.decode(out.read(ByteRange(_result_file(name))), type=ShardResult)
        image_sum = _read_sum(out, name) if result.image_sum else None
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise RunError(
            f"{out.url_of(_result_file(name))}: damaged ({error}); delete it and run the same command again"
        ) from error
    sums, products = np.array(result.sums, np.int64), np.array(result.products, np.int64)
    return result, Moments(result.images, result.count, sums, products, image_sum)


def finished(out: Store) -> set[str]:
    """Return the last names (`train-000000`) of finished shards: those whose result has been written."""
    return {name.removesuffix(".json") for name in out.names(RESULTS) if name.endswith(".json")}


def last_name(name: str) -> str:
    """Return a shard's name without its folder; results are named by it."""
    return name.rpartition("/")[2]


def forget(out: Store, name: str) -> None:
    """Delete a finished shard's result, so that the next run makes the shard again."""
    out.remove(_result_file(name))


class _Converter:
    """Converts source files to stored JPEGs, and collects the moments and report rows of a shard."""

    def __init__(self, options: Options, measured: bool) -> None:
        self.options = options
        self.measured = measured
        square = options.mode == "square" and measured
        self.moments = Moments.for_square(options.size) if square else Moments()
        self.report_rows: list[ReportRow] = []

    def convert(self, path: str, sample: Sample, data: bytes | OSError) -> bytes | None:
        """Return the JPEG to store, or None for an unusable file, which gets a report row."""
        options = self.options
        try:
            if isinstance(data, OSError):
                raise codec.DecodeError(f"unreadable file: {data.strerror or data}")
            if sample.size not in (UNKNOWN, len(data)):
                raise codec.DecodeError(f"has {len(data)} bytes now, but {sample.size} when it was listed")
            image = codec.decode(
                data,
                options.max_megapixels,
                size=options.size,
                exif_rotate=options.exif_rotate,
                keep=options.keep_original,
            )
            if options.mode == "square":
                pixels = codec.resize_square(image.pixels, options.size)
            else:
                pixels = codec.resize_shorter(image.pixels, options.size, image.shape)
        except codec.DecodeError as error:
            self.report_rows.append(ReportRow(path, str(error), "skipped"))
            return None
        if image.repair:
            self.report_rows.append(ReportRow(path, image.repair, "repaired"))
        if self.measured:
            self.moments.add(pixels)
        if options.keep_original:
            return image.jpeg or codec.encode(image.pixels, options.quality)
        return codec.encode(pixels, options.quality)


def _write_tar(
    job: ShardJob, out: Store, shard: ShardPlan, label_width: int, stored: dict[int, bytes]
) -> Shard | None:
    """Write the images that were not skipped, in the plan's order; upload the tar if `out` is a bucket."""
    if not isinstance(out, RemoteStore):
        return _pack(Path(out.url), shard, label_width, stored)
    make_folder(Path(job.scratch))
    # A folder for this attempt alone: another attempt of the same task may run on this machine.
    with tempfile.TemporaryDirectory(prefix="shard-", dir=job.scratch) as folder:
        described = _pack(Path(folder), shard, label_width, stored)
        if described:
            tar = Path(folder) / described.name
            out.upload(tar, described.name)
            out.upload(index_path(tar), f"{shard.name}.idx")
        return described


def _pack(root: Path, shard: ShardPlan, label_width: int, stored: dict[int, bytes]) -> Shard | None:
    tar = root / f"{shard.name}.tar"
    make_folder(tar.parent)
    with write_shard(tar, label_width) as writer:
        for k, sample in enumerate(shard.samples):
            if k in stored:
                writer.add(sample.key, stored[k], sample.label)
    return describe(root, tar, writer.samples) if writer.samples else None


def _write_result(out: Store, name: str, result: ShardResult, moments: Moments) -> None:
    if moments.image_sum is not None:
        buffer = io.BytesIO()
        np.save(buffer, moments.image_sum)
        out.write(_sum_file(name), buffer.getvalue())
    out.write(_result_file(name), to_json(result))


def _read_sum(out: Store, name: str) -> NDArray[np.int64]:
    stored = np.load(io.BytesIO(out.read(ByteRange(_sum_file(name)))), allow_pickle=False)
    return np.asarray(stored, np.int64)


@lru_cache(maxsize=1)
def _plan_of(out: str) -> Plan:
    """Read the plan of a dataset once for all tasks of a worker."""
    return read_plan(open_store(out))


def _result_file(name: str) -> str:
    return f"{RESULTS}/{last_name(name)}.json"


def _sum_file(name: str) -> str:
    return f"{RESULTS}/{last_name(name)}.npy"
