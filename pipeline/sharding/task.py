"""One prep task: a pure function from a shard's plan to its files and its part of the statistics."""

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
# The largest file that an image of so many pixels can have: 16 bits in each of four channels, and what
# comes with it.
_BYTES_PER_PIXEL = 8
_METADATA = 2**26


@dataclass(frozen=True)
class ShardResult:
    """What one finished shard contributes; `.work/results/NAME.json`, written after the shard.

    Attributes:
        name: of the shard.
        plan: digest of the plan that it is of.
        shard: the tar, or None where every image of it was skipped.
        incidents: rows for the report, in the order in which images lie in the source.
        labels: label → samples written.
        versions: of the libraries that made it, and the architecture.
        image_sum: whether the sum image lies beside as NAME.npy.
        images, count, sums, products: integer moments (see `pipeline.images.statistics`) of training pixels.
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
        """Images that were left out."""
        return sum(report_row.action == "skipped" for report_row in self.report_rows)


@dataclass(frozen=True)
class ShardJob:
    """Where a worker, on whatever machine, finds the source and the plan.

    Attributes:
        source: path or URL of the source's folder.
        out: path or URL of the dataset.
        scratch: folder on the worker's machine, of this job alone, for spooled sources and for shards on
            their way to a bucket.
    """

    source: str
    out: str
    scratch: str

    @property
    def spool(self) -> Path:
        """Where containers without random access are unpacked to."""
        return Path(self.scratch) / "spool"


def run_shard(job: ShardJob, name: str) -> ShardResult:
    """In a worker: make the shard `name` of the job's plan, and store it with its part.

    Raises:
        RunError: the output cannot be written, or this machine's libraries are not the plan's.
    """
    out, plan = open_store(job.out), _plan_of(job.out)
    refuse_versions(out, plan, versions(), "this machine")
    return run_task(job, out, plan, read_shard_plan(out, name))


def run_task(job: ShardJob, out: Store, plan: Plan, shard: ShardPlan) -> ShardResult:
    """Decode, scale, encode and store a shard's images, and note its moments.

    The images are read in the order in which they lie in the source, and written in the plan's.
    """
    work = _Work(plan.options, measured=shard.split == "train")
    order = in_reading_order(shard.samples)
    samples = [shard.samples[k] for k in order]
    largest = int(plan.options.max_megapixels * 1e6 * _BYTES_PER_PIXEL) + _METADATA
    read = read_samples(open_store(job.source), plan.containers, job.spool, samples, largest)
    stored: dict[int, bytes] = {}
    for k, sample, data in zip(order, samples, read, strict=True):
        count_image()
        if (jpeg := work.convert(display(plan.containers, sample), sample, data)) is not None:
            stored[k] = jpeg
    labels = Counter(shard.samples[k].label for k in stored)
    moments = work.moments
    result = ShardResult(
        shard.name,
        plan.digest,
        _write_tar(job, out, shard, plan.label_width, stored),
        tuple(work.report_rows),
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
    """Refuse libraries other than the plan's: they could decode or encode to other bytes.

    Raises:
        RunError: says which differs.
    """
    differ = [f"{k} {found.get(k)} instead of {v}" for k, v in plan.versions.items() if found.get(k) != v]
    if differ:
        raise RunError(
            f"{out}: {where} has {', '.join(differ)}, and other versions may give other bytes; "
            "install the same, or start again in another folder"
        )


def run_spool(job: ShardJob, number: int) -> None:
    """In a worker: make one container of the source readable at random."""
    container = _plan_of(job.out).containers[number]
    spool(open_store(job.source), number, container, job.spool)


def read_result(out: Store, name: str) -> tuple[ShardResult, Moments]:
    """Return a finished shard's part.

    Raises:
        RunError: it is unreadable, or of another release.
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
    """Last names (`train-000000`) of the shards whose part was written, after everything else of them."""
    return {name.removesuffix(".json") for name in out.names(RESULTS) if name.endswith(".json")}


def last_name(name: str) -> str:
    """A shard's name without its folder, as parts are named."""
    return name.rpartition("/")[2]


def forget(out: Store, name: str) -> None:
    """Have a finished shard made again by the next run."""
    out.remove(_result_file(name))


class _Work:
    """Turns files into stored images, and keeps the moments and incidents of a shard."""

    def __init__(self, options: Options, measured: bool) -> None:
        self.options = options
        self.measured = measured
        square = options.mode == "square" and measured
        self.moments = Moments.for_square(options.size) if square else Moments()
        self.report_rows: list[ReportRow] = []

    def convert(self, path: str, sample: Sample, data: bytes | OSError) -> bytes | None:
        """The JPEG to store, or None where the file is unusable, which becomes an incident."""
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
    """Write the images that are left in the plan's order, and upload them where `out` is a bucket."""
    if not isinstance(out, RemoteStore):
        return _pack(Path(out.url), shard, label_width, stored)
    make_folder(Path(job.scratch))
    # Of this task alone: another try of it may run on this machine too.
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
    """A worker's tasks share one plan."""
    return read_plan(open_store(out))


def _result_file(name: str) -> str:
    return f"{RESULTS}/{last_name(name)}.json"


def _sum_file(name: str) -> str:
    return f"{RESULTS}/{last_name(name)}.npy"
