"""The plan of a job: which sample goes into which shard. It is made once, stored, and used by all workers.

`.work/plan.json` holds everything but the samples. Each shard's samples are in a file of their own, so that a
task reads only its own 2,000 samples and not ImageNet's 1.28 million.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from pipeline.arguments import COUNT, POSITIVE, SIZES, check_record
from pipeline.dataset.manifest import ImageMode, to_json
from pipeline.dataset.report import ReportRow
from pipeline.dataset.work import WORK, versions
from pipeline.errors import RunError, UsageError
from pipeline.sources.base import FILE, UNKNOWN, Container, Sample, Source, SourceOptions
from pipeline.sources.subset import shuffle_key
from pipeline.storage.base import ByteRange, Store, leads_out

PLAN = f"{WORK}/plan.json"
_SHARDS = f"{WORK}/plan"
_LEFT_OUT = f"{_SHARDS}/left_out.json"

# A tar of 2,000 ImageNet images at 256 px has some 50 MB: large enough to stream, small enough to
# make again. Smaller datasets get smaller tars, so that shuffling the tars still shuffles the samples.
_MOST_PER_SHARD = 2000
# A worker holds all images of a shard in memory; images kept at their original size can be of any size.
_MOST_BYTES_PER_SHARD = 2**28
_FEWEST_SHARDS = 16
_FEWEST_PER_SHARD = 50
_SMALLEST_LABEL_WIDTH = 4

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Options:
    """Options of a preparation. A shard's bytes depend on the source and on these alone.

    Attributes:
        size: Shorter side of stored images, in pixels, 8..4096.
        keep_aspect: Keep the whole image instead of its center square.
        quality: JPEG quality, 1..100.
        seed: Seed of the global shuffle.
        shard_samples: Samples per tar, or None to choose by the size of the split.
        max_megapixels: Images with more megapixels are skipped.
        exif_rotate: Rotate and flip images as their EXIF orientation says.
        keep_original: Store good RGB JPEGs byte for byte, and other images at full size; `size` is then the
            shorter side that the loader scales to.
        drop_duplicates: Leave out training images whose file has the same bytes as one of "val" or "test".

    Raises:
        UsageError: A number is out of range, or both `keep_aspect` and `keep_original` are set.
    """

    size: int = 256
    keep_aspect: bool = False
    quality: int = 95
    seed: int = 0
    shard_samples: int | None = None
    max_megapixels: float = 100.0
    exif_rotate: bool = False
    keep_original: bool = False
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        check_record(self, size=SIZES, quality=(1, 100), shard_samples=COUNT, max_megapixels=POSITIVE)
        if self.keep_aspect and self.keep_original:
            raise UsageError(
                "--keep-aspect scales images and --keep-original does not: give one of them, or neither"
            )

    @property
    def mode(self) -> ImageMode:
        """How images are stored, as in the manifest's `image.mode`: "square", "aspect" or "original"."""
        return "original" if self.keep_original else "aspect" if self.keep_aspect else "square"


@dataclass(frozen=True)
class ShardPlan:
    """One shard of the plan, which one task makes.

    Attributes:
        name: Path of the tar without its suffix, such as `train/train-000000`.
        split: "train", "val" or "test".
        samples: Samples in the order in which they are written.
    """

    name: str
    split: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class ShardSummary:
    """A `ShardPlan` with the number of its samples instead of the samples."""

    name: str
    split: str
    samples: int


@dataclass(frozen=True)
class Plan:
    """Plan of a whole job without the samples; the content of `.work/plan.json`.

    Attributes:
        options: Options of the preparation.
        source: Path or URL of the source.
        layout: Kind of the source; see `Source.layout`.
        read_with: How the source was read.
        fingerprint: SHA-256 of the source's listing; see `Source.fingerprint`.
        classes: Id and name of each class, in label order.
        containers: Containers that the samples refer to.
        versions: Versions of the libraries, and the machine's architecture.
        shards: All shards, split by split.
    """

    options: Options
    source: str
    layout: str
    read_with: SourceOptions
    fingerprint: str
    classes: tuple[tuple[str, str], ...]
    containers: tuple[Container, ...]
    versions: dict[str, str]
    shards: tuple[ShardSummary, ...]

    @property
    def label_width(self) -> int:
        """Number of digits in every .cls member."""
        return max(_SMALLEST_LABEL_WIDTH, len(str(len(self.classes) - 1)))

    @property
    def samples(self) -> int:
        """Number of images in all shards."""
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the plan; results and scratch folders carry it, so that plans never mix."""
        return hashlib.sha256(to_json(self)).hexdigest()


def make_plan(source: Source, options: Options) -> tuple[Plan, list[ShardPlan]]:
    """Shuffle each split globally by the seed and cut it into shards with nearly equal numbers of samples."""
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
        read_with=source.options,
        fingerprint=source.fingerprint(),
        classes=tuple((c.id, c.name) for c in source.classes),
        containers=source.containers,
        versions=versions(),
        shards=tuple(ShardSummary(s.name, s.split, len(s.samples)) for s in shards),
    )
    return plan, shards


def agreed_plan(out: Store, source: Source, options: Options) -> Plan:
    """Make the plan of a job and store it, unless it is stored already.

    Returns:
        The stored plan, which the finished results name; the source may have moved since.

    Raises:
        UsageError: A plan with another source, option or library version is stored, or it is damaged.
    """
    plan, shards = make_plan(source, options)
    if not out.is_file(PLAN):
        store_plan(out, plan, shards, source.left_out.rows())
        return plan
    stored = read_plan(out)
    refuse_difference(identity(plan), identity(stored), out)
    return stored


def check_slice(out: Store, plan: Plan, source: Store, options: Options, read_with: SourceOptions) -> None:
    """Check that a slice has the source, options and library versions of the stored plan.

    The source is not listed again in every slice: a file that changed since is noticed by its size when it is
    read.

    Raises:
        UsageError: Something differs, or a container of the source has another size.
    """
    refuse_difference(shown_options(read_with) | asdict(options) | versions(), identity(plan), out)
    if source.url != plan.source:
        raise UsageError(f"{out}: was planned from {plan.source}, not {source.url}; name the same source")
    for container in plan.containers:
        if (size := source.size(container.path)) != container.size:
            raise UsageError(
                f"{source.url_of(container.path)}: {size:,} bytes, but {container.size:,} when it was "
                "listed; restore it, or start again in another folder"
            )


def store_plan(
    out: Store, plan: Plan, shards: Sequence[ShardPlan], left_out: Sequence[ReportRow] = ()
) -> None:
    """Write each shard's samples, the rows of files left out, then the plan: if that is there, all is."""
    out.write(_LEFT_OUT, msgspec.json.encode(left_out))
    for shard in shards:
        out.write(_shard_file(shard.name), msgspec.json.encode(shard))
    out.write(PLAN, to_json(plan))


def read_plan(out: Store) -> Plan:
    """Read a stored plan.

    Raises:
        UsageError: There is no plan, it is damaged or from another release, or a name in it leads out of the
            folder of the dataset or the source.
    """
    if not out.is_file(PLAN):
        raise UsageError(f"{out}: no preparation was begun here (no {PLAN}); run `alexnet-prep shard` first")
    plan = _decode(out, PLAN, Plan)
    _refuse_outside(out, PLAN, [shard.name for shard in plan.shards])
    _refuse_outside(out, PLAN, [container.path for container in plan.containers])
    return plan


def read_left_out(out: Store) -> list[ReportRow]:
    """Read the rows for report.csv of the source's files that were left out.

    Raises:
        UsageError: The file is missing or damaged.
    """
    return _decode(out, _LEFT_OUT, list[ReportRow])


def read_shard_plan(out: Store, name: str) -> ShardPlan:
    """Read the samples of one shard of a stored plan.

    Args:
        out: Folder of the dataset.
        name: Name of the shard, such as `train/train-000000`.

    Raises:
        UsageError: The file is missing or damaged, is of another shard, or names a file outside the source.
    """
    shard = _decode(out, _shard_file(name), ShardPlan)
    if shard.name != name:
        raise _unreadable(out, _shard_file(name), f"it is of {shard.name!r}")
    _refuse_outside(out, _shard_file(name), [s.path for s in shard.samples if s.container == FILE])
    return shard


def refuse_difference(wanted: Mapping[str, Any], found: Mapping[str, Any], out: Store) -> None:
    """Raise UsageError if existing output was made from another source, options or library versions.

    Args:
        wanted: Name → value of everything that the output's bytes depend on in this run, from `identity`.
        found: The same for the existing output, from its plan or manifest.
        out: Folder of the output, for the message.

    Raises:
        UsageError: Something differs; the message names each difference.
    """
    differences = [
        "the source's files differ (names, labels or sizes)"
        if name == "fingerprint"
        else f"{_shown(name)} was {found.get(name)}, now {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differences:
        raise UsageError(
            f"{out} holds output of another run: {'; '.join(differences)}; "
            "give the same input and options, or another output folder"
        )


def refuse_versions(out: Store, plan: Plan, found: Mapping[str, str], where: str) -> None:
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


def identity(plan: Plan) -> dict[str, Any]:
    """Return everything that the output's bytes depend on: options, fingerprint and versions, by name."""
    options = shown_options(plan.read_with) | asdict(plan.options)
    return options | {"fingerprint": plan.fingerprint} | plan.versions


def shown_options(read_with: SourceOptions) -> dict[str, Any]:
    """Return how a source was read, by name; a list of classes by its length and a checksum.

    The seed is left out, as it is that of the `Options`; and the limit of damage, which may be raised.
    """
    found = asdict(read_with)
    del found["seed"], found["max_bad"]
    if read_with.classes is not None:
        digest = hashlib.sha256("\n".join(read_with.classes).encode()).hexdigest()
        found["classes"] = f"{len(read_with.classes)} classes ({digest[:12]})"
    return found


def _shown(name: str) -> str:
    """Return the name of an option on the command line, such as `--val-fraction`; versions keep theirs."""
    known = Options.__dataclass_fields__.keys() | SourceOptions.__dataclass_fields__.keys()
    return f"--{name.replace('_', '-')}" if name in known else name


def _decode(out: Store, name: str, kind: type[Kind]) -> Kind:
    try:
        return msgspec.json.decode(out.read(ByteRange(name)), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable(out, name, error) from error


def _refuse_outside(out: Store, name: str, paths: Iterable[str]) -> None:
    if (path := next(filter(leads_out, paths), None)) is not None:
        raise _unreadable(out, name, f"the name {path!r} leads out of its folder")


def _unreadable(out: Store, name: str, reason: object) -> UsageError:
    return UsageError(
        f"{out.url_of(name)}: unreadable plan ({reason}); remove the unfinished output and start again"
    )


def _shard_file(name: str) -> str:
    return f"{_SHARDS}/{name.rpartition('/')[2]}.json"


def _shard_count(samples: int, per_shard: int | None, size: int = 0) -> int:
    if per_shard is not None:
        return -(-samples // per_shard)
    few = min(_FEWEST_SHARDS, -(-samples // _FEWEST_PER_SHARD))
    return min(samples, max(few, -(-samples // _MOST_PER_SHARD), -(-size // _MOST_BYTES_PER_SHARD)))


def _bytes(source: Source, samples: list[Sample]) -> int:
    """Return the size of samples in bytes; rows of Parquet files count with the source's average."""
    known = sum(sample.size for sample in samples if sample.size != UNKNOWN)
    unknown = sum(sample.size == UNKNOWN for sample in samples)
    rows = sum(sample.size == UNKNOWN for members in source.splits.values() for sample in members)
    return known + (sum(c.size for c in source.containers) * unknown // rows if unknown else 0)
