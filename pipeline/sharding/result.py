"""Results of finished shards on disk: `.work/results/NAME.json`, and what lies beside it.

NAME.digests holds the digests of the images' files (`pipeline.sharding.duplicates`), NAME.npy the sum of
square images.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np

from pipeline.dataset.manifest import Shard, to_json
from pipeline.dataset.report import ReportRow
from pipeline.dataset.work import WORK
from pipeline.errors import RunError
from pipeline.images.statistics import Moments
from pipeline.sharding.plan import Plan, ShardSummary, refuse_versions
from pipeline.storage.base import ByteRange, Store

RESULTS = f"{WORK}/results"
"""Folder of the finished shards' results, below the dataset's."""


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
        held_out: With `drop_duplicates`, checksum of the held-out digests that a training shard was compared
            with; else "".
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
    held_out: str = ""
    image_sum: bool = False
    images: int = 0
    count: int = 0
    sums: list[int] = field(default_factory=list)
    products: list[list[int]] = field(default_factory=list)

    @property
    def split(self) -> str:
        """Split of the shard: "train", "val" or "test"."""
        return self.name.partition("/")[0]

    @property
    def skipped(self) -> int:
        """Number of images that were left out."""
        return sum(report_row.action == "skipped" for report_row in self.report_rows)

    @property
    def dropped(self) -> int:
        """Number of training images that were left out because a held-out image has the same bytes."""
        return sum(report_row.action == "left out" for report_row in self.report_rows)


def store_result(out: Store, result: ShardResult, moments: Moments, digests: bytes) -> None:
    """Write a shard's digests, the sum of its images if there is one, and its result: it is finished."""
    out.write(digests_file(result.name), digests)
    if moments.image_sum is not None:
        buffer = io.BytesIO()
        np.save(buffer, moments.image_sum)
        out.write(_file(result.name, "npy"), buffer.getvalue())
    out.write(_file(result.name, "json"), to_json(result))


def read_result(out: Store, name: str) -> tuple[ShardResult, Moments]:
    """Read the result of the finished shard `name`, and its moments.

    Raises:
        RunError: The result cannot be read, or is from another release.
    """
    file, image_sum = _file(name, "json"), None
    try:
        result = msgspec.json.decode(out.read(ByteRange(file)), type=ShardResult)
        if result.image_sum:
            stored = io.BytesIO(out.read(ByteRange(_file(name, "npy"))))
            image_sum = np.asarray(np.load(stored, allow_pickle=False), np.int64)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise RunError(
            f"{out.url_of(file)}: damaged ({error}); delete it and run the same command again"
        ) from error
    sums, products = np.array(result.sums, np.int64), np.array(result.products, np.int64)
    return result, Moments(result.images, result.count, sums, products, image_sum)


def digests_file(name: str) -> str:
    """Return the path of the digests of the finished shard `name`, below the dataset's folder."""
    return _file(name, "digests")


def read_results(out: Store, plan: Plan) -> Iterator[tuple[ShardResult, Moments]]:
    """Yield the results of a plan's finished shards, in the plan's order, and their moments.

    Raises:
        RunError: A result cannot be read, or was made for another plan or with other library versions.
    """
    done = finished(out)
    for shard in plan.shards:
        if shard.name in done:
            result, moments = read_result(out, shard.name)
            if result.plan != plan.digest:
                raise RunError(
                    f"{out}: {result.name} was made for another plan, by a job that ran at the same time; "
                    f"remove {out} and start again, one job at a time"
                )
            refuse_versions(out, plan, result.versions, shard.name)
            yield result, moments


def finished(out: Store) -> set[str]:
    """Return the names of finished shards: those whose result has been written."""
    lasts = (name.removesuffix(".json") for name in out.names(RESULTS) if name.endswith(".json"))
    return {f"{last.rpartition('-')[0]}/{last}" for last in lasts}


def forget_skips(out: Store, shards: Iterable[ShardSummary]) -> None:
    """Mark finished shards with skipped images as unfinished: the files may be readable in the next run."""
    _forget(out, shards, lambda result: result.skipped > 0)


def forget_outdated(out: Store, shards: Iterable[ShardSummary], held_out: str) -> None:
    """Mark training shards as unfinished that were compared with other digests than those of `held_out`."""
    _forget(out, (s for s in shards if s.split == "train"), lambda result: result.held_out != held_out)


def _forget(out: Store, shards: Iterable[ShardSummary], why: Callable[[ShardResult], bool]) -> None:
    done = finished(out)
    for shard in shards:
        if shard.name in done and why(read_result(out, shard.name)[0]):
            out.remove(_file(shard.name, "json"))


def _file(name: str, suffix: str) -> str:
    return f"{RESULTS}/{name.rpartition('/')[2]}.{suffix}"
