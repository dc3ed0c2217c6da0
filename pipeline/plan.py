"""Which sample goes into which shard: decided once, stored, and the same for every engine."""

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from pipeline.errors import UsageError
from pipeline.sources import Sample, Source, rank

# A tar of 2,000 ImageNet pictures at 256 px has some 50 MB: large enough to stream, small enough to
# redo. Smaller datasets get smaller tars, so that permuting tars still shuffles.
_MOST_PER_SHARD = 2000
_FEWEST_SHARDS = 16
_FEWEST_PER_SHARD = 50
_SMALLEST_LABEL_WIDTH = 4


@dataclass(frozen=True)
class Options:
    """Everything but the source that a shard's bytes depend on; units as on the command line.

    Attributes:
        size: shorter side of stored pictures, pixels.
        keep_aspect: keep the whole picture instead of its centre square.
        quality: JPEG quality, 1..100.
        val_fraction: share of each class moved to "val", or None.
        seed: of the global shuffle and of `val_fraction`.
        shard_samples: samples per tar, or None to choose by the split's size.
        max_megapixels: larger pictures are refused.
    """

    size: int = 256
    keep_aspect: bool = False
    quality: int = 95
    val_fraction: float | None = None
    seed: int = 0
    shard_samples: int | None = None
    max_megapixels: float = 100.0


@dataclass(frozen=True)
class ShardPlan:
    """One task: the tar's `name` without suffix (`train/train-000000`) and its samples in order."""

    name: str
    split: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Plan:
    """The whole job, as `.work/plan.json` keeps it."""

    options: Options
    layout: str
    fingerprint: str
    classes: tuple[tuple[str, str], ...]
    versions: dict[str, str]
    shards: tuple[ShardPlan, ...]

    @property
    def label_width(self) -> int:
        """Digits of every .cls member."""
        return max(_SMALLEST_LABEL_WIDTH, len(str(len(self.classes) - 1)))


def make_plan(source: Source, options: Options) -> Plan:
    """Shuffle each split globally by the seed and cut it into shards of nearly equal length."""
    shards: list[ShardPlan] = []
    for split, samples in sorted(source.splits.items()):
        shuffled = sorted(samples, key=lambda s: rank(options.seed, split, s.key))
        count = _shard_count(len(shuffled), options.shard_samples)
        for number in range(count):
            lo, hi = (len(shuffled) * k // count for k in (number, number + 1))
            name = f"{split}/{split}-{number:06d}"
            shards.append(ShardPlan(name, split, tuple(shuffled[lo:hi])))
    return Plan(
        options=options,
        layout=source.layout,
        fingerprint=source.fingerprint(),
        classes=tuple((c.id, c.name) for c in source.classes),
        versions=versions(),
        shards=tuple(shards),
    )


def versions() -> dict[str, str]:
    """This tool's, the libraries' and the architecture's versions: bytes are repeatable given these."""
    names = ("alexnet-toolkit", "numpy", "opencv-python-headless", "pillow", "simplejpeg")
    return {name: version(name) for name in names} | {"architecture": platform.machine()}


def read_plan(path: Path) -> Plan:
    """Read a stored plan.

    Raises:
        UsageError: damaged, or of another release.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{path}: unreadable plan ({error}); remove the unfinished output and start again"
        ) from error


def refuse_difference(
    wanted: Plan,
    options: dict[str, object],
    fingerprint: str,
    found_versions: dict[str, str],
    out: Path,
) -> None:
    """Refuse to go on where existing output was made of other input than is asked for now.

    Raises:
        UsageError: says which option, source or version differs.
    """
    now = asdict(wanted.options)
    differences = [
        f"--{name.replace('_', '-')} was {options.get(name)}, now {value}"
        for name, value in now.items()
        if options.get(name) != value
    ]
    if fingerprint != wanted.fingerprint:
        differences.append("the source's files differ (names, labels or sizes)")
    differences += [
        f"{name} was {found_versions.get(name)}, now {value}"
        for name, value in wanted.versions.items()
        if found_versions.get(name) != value
    ]
    if differences:
        raise UsageError(
            f"{out} holds output of another run: {'; '.join(differences)}; "
            "give the same input and options, or another output folder"
        )


def _shard_count(samples: int, per_shard: int | None) -> int:
    if per_shard is not None:
        return -(-samples // per_shard)
    few = min(_FEWEST_SHARDS, -(-samples // _FEWEST_PER_SHARD))
    return max(few, -(-samples // _MOST_PER_SHARD))
