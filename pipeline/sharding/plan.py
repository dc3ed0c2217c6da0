"""Which sample goes into which shard: decided once, stored, and the same for every engine.

`.work/plan.json` holds everything but the samples; those of a shard are a file of their own, so that a task
on another machine reads its own two thousand and not ImageNet's 1.28 million.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from pipeline.dataset.manifest import to_json
from pipeline.dataset.work import WORK, versions
from pipeline.errors import UsageError
from pipeline.sources.base import UNKNOWN, Container, Sample, Source, shuffle_key
from pipeline.storage.base import ByteRange, Store

PLAN = f"{WORK}/plan.json"
_SHARDS = f"{WORK}/plan"

# A tar of 2,000 ImageNet images at 256 px has some 50 MB: large enough to stream, small enough to
# redo. Smaller datasets get smaller tars, so that permuting tars still shuffles.
_MOST_PER_SHARD = 2000
# A worker holds the images of a shard: those of their original size may have any.
_MOST_BYTES_PER_SHARD = 2**28
_FEWEST_SHARDS = 16
_FEWEST_PER_SHARD = 50
_SMALLEST_LABEL_WIDTH = 4

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Options:
    """Everything but the source that a shard's bytes depend on; units as on the command line.

    Attributes:
        size: shorter side of stored images, pixels.
        keep_aspect: keep the whole image instead of its center square.
        quality: JPEG quality, 1..100.
        val_fraction: share of each class moved to "val", or None.
        seed: of the global shuffle and of `val_fraction`.
        shard_samples: samples per tar, or None to choose by the split's size.
        max_megapixels: larger images are refused.
        exif_rotate: turn images as their EXIF orientation says.
        keep_original: store good RGB JPEGs byte for byte, and the rest at full size; `size` is then what
            the loader scales to.

    Raises:
        UsageError: `keep_aspect` beside `keep_original`.
    """

    size: int = 256
    keep_aspect: bool = False
    quality: int = 95
    val_fraction: float | None = None
    seed: int = 0
    shard_samples: int | None = None
    max_megapixels: float = 100.0
    exif_rotate: bool = False
    keep_original: bool = False

    def __post_init__(self) -> None:
        if self.keep_aspect and self.keep_original:
            raise UsageError(
                "--keep-aspect scales images and --keep-original does not: give one of them, or neither"
            )

    @property
    def mode(self) -> str:
        """How images are stored, as the manifest's `image.mode` has it."""
        return "original" if self.keep_original else "aspect" if self.keep_aspect else "square"


@dataclass(frozen=True)
class ShardPlan:
    """One task: the tar's `name` without suffix (`train/train-000000`) and its samples in order."""

    name: str
    split: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class ShardSummary:
    """A task without its samples: their number."""

    name: str
    split: str
    samples: int


@dataclass(frozen=True)
class Plan:
    """The whole job but its samples, as `.work/plan.json` keeps it; `source` is the source's address."""

    options: Options
    source: str
    layout: str
    fingerprint: str
    classes: tuple[tuple[str, str], ...]
    containers: tuple[Container, ...]
    versions: dict[str, str]
    shards: tuple[ShardSummary, ...]

    @property
    def label_width(self) -> int:
        """Digits of every .cls member."""
        return max(_SMALLEST_LABEL_WIDTH, len(str(len(self.classes) - 1)))

    @property
    def samples(self) -> int:
        """Images of all shards."""
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan: parts of another one are not merged, and scratch folders not shared."""
        return hashlib.sha256(to_json(self)).hexdigest()


def make_plan(source: Source, options: Options) -> tuple[Plan, list[ShardPlan]]:
    """Shuffle each split globally by the seed and cut it into shards of nearly equal length."""
    shards: list[ShardPlan] = []
    for split, samples in sorted(source.splits.items()):
        shuffled = sorted(samples, key=lambda s: shuffle_key(options.seed, split, s.key))
        size = _bytes(source, shuffled) if options.keep_original else 0
        count = _shard_count(len(shuffled), options.shard_samples, size)
        for number in range(count):
            lo, hi = (len(shuffled) * k // count for k in (number, number + 1))
            name = f"{split}/{split}-{number:06d}"
            shards.append(ShardPlan(name, split, tuple(shuffled[lo:hi])))
    plan = Plan(
        options=options,
        source=source.root,
        layout=source.layout,
        fingerprint=source.fingerprint(),
        classes=tuple((c.id, c.name) for c in source.classes),
        containers=source.containers,
        versions=versions(),
        shards=tuple(ShardSummary(s.name, s.split, len(s.samples)) for s in shards),
    )
    return plan, shards


def store_plan(out: Store, plan: Plan, shards: list[ShardPlan]) -> None:
    """Write each shard's samples, then the plan: its presence means that all of it is there."""
    for shard in shards:
        out.write(_shard_file(shard.name), msgspec.json.encode(shard))
    out.write(PLAN, to_json(plan))


def read_plan(out: Store) -> Plan:
    """Read a stored plan.

    Raises:
        UsageError: none there, damaged, or of another release.
    """
    if not out.is_file(PLAN):
        raise UsageError(f"{out}: no preparation was begun here (no {PLAN}); run `alexnet-prep shard` first")
    return _decode(out, PLAN, Plan)


def read_shard_plan(out: Store, name: str) -> ShardPlan:
    """Read the samples of one shard of a stored plan.

    Raises:
        UsageError: missing or damaged.
    """
    return _decode(out, _shard_file(name), ShardPlan)


def refuse_difference(
    wanted: Mapping[str, Any],
    found: Mapping[str, Any],
    out: Store,
) -> None:
    """Refuse to go on where existing output was made of other input than is asked for now.

    Args:
        wanted: what the output's bytes depend on now, from `identity`.
        found: the same of the existing output, from its plan or manifest.
        out: the output, for the message.

    Raises:
        UsageError: says which option, source or version differs.
    """
    differences = [
        "the source's files differ (names, labels or sizes)"
        if name == "fingerprint"
        else f"{name} was {found.get(name)}, now {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differences:
        raise UsageError(
            f"{out} holds output of another run: {'; '.join(differences)}; "
            "give the same input and options, or another output folder"
        )


def identity(plan: Plan) -> dict[str, Any]:
    """Everything that the output's bytes depend on, named as the user knows it."""
    return option_names(asdict(plan.options)) | {"fingerprint": plan.fingerprint} | plan.versions


def option_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under their names on the command line."""
    return {f"--{name.replace('_', '-')}": value for name, value in options.items()}


def _decode(out: Store, name: str, kind: type[Kind]) -> Kind:
    try:
        return msgspec.json.decode(out.read(ByteRange(name)), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{out.url_of(name)}: unreadable plan ({error}); remove the unfinished output and start again"
        ) from error


def _shard_file(name: str) -> str:
    return f"{_SHARDS}/{name.rpartition('/')[2]}.json"


def _shard_count(samples: int, per_shard: int | None, size: int = 0) -> int:
    if per_shard is not None:
        return -(-samples // per_shard)
    few = min(_FEWEST_SHARDS, -(-samples // _FEWEST_PER_SHARD))
    return min(samples, max(few, -(-samples // _MOST_PER_SHARD), -(-size // _MOST_BYTES_PER_SHARD)))


def _bytes(source: Source, samples: list[Sample]) -> int:
    """Bytes of samples; of those in Parquet files, which only reading tells, as if all were alike."""
    known = sum(sample.size for sample in samples if sample.size != UNKNOWN)
    unknown = sum(sample.size == UNKNOWN for sample in samples)
    rows = sum(sample.size == UNKNOWN for members in source.splits.values() for sample in members)
    return known + (sum(c.size for c in source.containers) * unknown // rows if unknown else 0)
