"""One prep task: a pure function from a shard's plan to its files and its part of the statistics."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from pipeline import codec
from pipeline.files import write_array, write_bytes
from pipeline.manifest import to_json
from pipeline.moments import Moments
from pipeline.plan import Options, ShardPlan
from pipeline.shards import Shard, describe, write_shard

PARTS = ".work/parts"


@dataclass(frozen=True)
class Incident:
    """A row of report.csv: which picture was skipped or repaired, and why."""

    path: str
    reason: str
    action: str


@dataclass(frozen=True)
class Part:
    """What one finished shard contributes; `.work/parts/NAME.json`, written after the shard.

    Attributes:
        shard: the tar, or None where every picture of it was skipped.
        incidents: rows for the report, in the shard's order.
        labels: label → samples written.
        images, count, sums, products: integer moments (see `pipeline.moments`) of training pixels; the
            sum image lies beside as NAME.npy.
    """

    shard: Shard | None
    incidents: tuple[Incident, ...]
    labels: dict[int, int]
    images: int = 0
    count: int = 0
    sums: list[int] = field(default_factory=list)
    products: list[list[int]] = field(default_factory=list)


def run_task(
    source: Path,
    out: Path,
    plan: ShardPlan,
    options: Options,
    label_width: int,
    handled: Callable[[], None],
) -> Part:
    """Decode, scale, encode and store a shard's pictures, and note its moments.

    Args:
        source: the folder that sample paths are relative to.
        out: the dataset's folder.
        plan: the shard's name and samples.
        options: size, quality and limits.
        label_width: digits of a .cls member.
        handled: called for every picture.

    Raises:
        RunError: `out` cannot be written.
    """
    square = not options.keep_aspect
    measured = plan.split == "train"
    moments = Moments.for_square(options.size) if square and measured else Moments()
    incidents: list[Incident] = []
    labels: dict[int, int] = {}
    tar = out / f"{plan.name}.tar"
    with write_shard(tar, label_width) as writer:
        for sample in plan.samples:
            handled()
            try:
                picture = codec.decode((source / sample.path).read_bytes(), options.max_megapixels)
                pixels = codec.resize_shorter(picture.pixels, options.size)
            except (codec.DecodeError, OSError) as error:
                incidents.append(Incident(sample.path, _reason(error), "skipped"))
                continue
            if picture.repair:
                incidents.append(Incident(sample.path, picture.repair, "repaired"))
            if square:
                pixels = codec.centre_square(pixels, options.size)
            if measured:
                moments.add(pixels)
            writer.add(sample.key, codec.encode(pixels, options.quality), sample.label)
            labels[sample.label] = labels.get(sample.label, 0) + 1
    shard = describe(out, tar, writer.samples) if writer.samples else None
    part = Part(
        shard,
        tuple(incidents),
        labels,
        moments.images,
        moments.count,
        moments.sums.tolist(),
        moments.products.tolist(),
    )
    _write_part(out, plan, part, moments)
    return part


def read_part(out: Path, plan: ShardPlan) -> tuple[Part, Moments] | None:
    """Return a finished shard's part, or None where it is not finished."""
    path = _part_path(out, plan)
    if not path.is_file():
        return None
    part = msgspec.json.decode(path.read_bytes(), type=Part)
    image_sum = path.with_suffix(".npy")
    moments = Moments(
        part.images,
        part.count,
        np.array(part.sums, np.int64),
        np.array(part.products, np.int64),
        np.load(image_sum, allow_pickle=False) if image_sum.is_file() else None,
    )
    return part, moments


def is_finished(out: Path, plan: ShardPlan) -> bool:
    """Whether the shard's part was written, which happens after everything else of it."""
    return _part_path(out, plan).is_file()


def forget(out: Path, plan: ShardPlan) -> None:
    """Have a finished shard made again by the next run."""
    _part_path(out, plan).unlink(missing_ok=True)


def _write_part(out: Path, plan: ShardPlan, part: Part, moments: Moments) -> None:
    path = _part_path(out, plan)
    if moments.image_sum is not None:
        write_array(path.with_suffix(".npy"), moments.image_sum)
    write_bytes(path, to_json(part))


def _part_path(out: Path, plan: ShardPlan) -> Path:
    return out / PARTS / f"{Path(plan.name).name}.json"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"unreadable file: {error.strerror or error}"
    return str(error)
