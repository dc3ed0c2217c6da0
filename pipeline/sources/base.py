"""A listed source: labeled samples with unique keys, and the file and offset of each image's bytes.

A lister (folders, archives, Parquet, tars) lists a source into a `Listing`; `build_source` checks it, orders
the classes and assigns the keys. Sources with the same file names and classes get the same keys and labels,
and therefore the same shards.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from posixpath import splitext

import msgspec

from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"],
)
# USTAR allows 100 bytes for a member's name; the key leaves room for its extension.
_LONGEST_KEY = 80
_SAFE = re.compile(rb"[A-Za-z0-9_+=@~-]{1,%d}" % _LONGEST_KEY)

FILE = -1
"""`container` of a sample that is a file of its own."""
UNKNOWN = -1
"""`size` of a sample whose size is known only after reading it (rows of Parquet files)."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An image as a lister lists it.

    Attributes:
        path: Path of the file below the source's root, or of the member in its container. The stem of its
            last part becomes the key.
        class_id: Id of its class, such as a WNID or a folder's name.
        size: Size in bytes, or UNKNOWN.
        container: Index into the listing's containers, or FILE.
        offset: Byte offset of the data in a tar; row number in a Parquet file; 0 for a file of its own.
    """

    path: str
    class_id: str
    size: int
    container: int = FILE
    offset: int = 0


class Sample(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One image of a source or plan: an `Entry` with its label (0..K-1) and its key in the shards."""

    path: str
    label: int
    key: str
    size: int = UNKNOWN
    container: int = FILE
    offset: int = 0


@dataclass(frozen=True)
class Container:
    """A file that holds many images: its path below the root, and its size in bytes."""

    path: str
    size: int


@dataclass
class Listing:
    """Images and classes that a lister found.

    Attributes:
        layout: Name of the layout, as in `--layout`.
        entries: Split ("train", and "val" and "test" where present) → images, in any order.
        containers: Containers that the entries refer to.
        names: Class id → name to show, where known.
        classes: Ids of all classes in label order; None means the sorted ids of the entries.
        notes: Lines to show to the user, such as how many files were left out.
    """

    layout: str
    entries: dict[str, list[Entry]]
    containers: tuple[Container, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A listed and checked source: the input of `make_plan` and `prepare`.

    Attributes:
        root: Path or URL of the folder that paths are relative to.
        layout: Name of the layout, for the manifest.
        classes: Classes in label order.
        splits: Split ("train", and "val" and "test" where present) → samples.
        containers: Containers that the samples refer to.
        notes: Lines to show to the user, such as how many files were left out.
    """

    root: str
    layout: str
    classes: tuple[ClassInfo, ...]
    splits: dict[str, list[Sample]]
    containers: tuple[Container, ...] = ()
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the containers, and of each sample's split, container, path, label and size."""
        digest = hashlib.sha256()
        for container in self.containers:
            digest.update(f"{container.path}\0{container.size}\n".encode())
        for split, samples in self.splits.items():
            for s in samples:
                digest.update(f"{split}\0{s.container}\0{s.path}\0{s.label}\0{s.size}\n".encode())
        return digest.hexdigest()


def build_source(root: str, listing: Listing, val_fraction: float | None = None, seed: int = 0) -> Source:
    """Check a listing, order its classes, assign keys, and split off a validation set if asked to.

    Args:
        root: Path or URL of the source.
        listing: Images and classes of the source. Its entries are consumed: they are removed as they are
            turned into samples.
        val_fraction: Share of each class, in (0, 1), that becomes the "val" split, chosen by `seed`. Only for
            sources without validation images. A class keeps at least one training image.
        seed: Seed of the choice of validation images.

    Raises:
        UsageError: No images; one class; a class without training images; a name that is not UTF-8;
            `val_fraction` outside (0, 1), given for a source with validation images, or so small that it
            selects no image.
    """
    _check_fraction(root, listing, val_fraction)
    _check_names(root, listing)
    ids = list(listing.classes or sorted({e.class_id for es in listing.entries.values() for e in es}))
    _check_classes(root, ids, listing)
    notes = list(listing.notes)
    splits = _samples(listing, {class_id: label for label, class_id in enumerate(ids)}, notes)
    if val_fraction is not None:
        splits = splits | _split_off(splits["train"], val_fraction, seed)
        missing = len(ids) - len({sample.label for sample in splits["val"]})
        if missing:
            notes.append(
                f"val: {missing} of {len(ids)} classes are too small for --val-fraction {val_fraction:g}"
            )
    classes = tuple(ClassInfo(i, listing.names.get(i, i)) for i in ids)
    return Source(root, listing.layout, classes, splits, listing.containers, notes)


def shuffle_key(seed: int, purpose: str, key: str) -> bytes:
    """Return a 16-byte sort key; sorting samples by it shuffles them by `seed` and `purpose`.

    It is a hash, not a random generator's stream: the same in every library version, and adding or removing
    an image does not change the order of the others.
    """
    return hashlib.blake2b(f"{seed}/{purpose}/{key}".encode(), digest_size=16).digest()


def unique_keys(images: Iterable[tuple[int, str, str]]) -> tuple[list[str], int]:
    """Return one key for each image: the file's stem, escaped, with the class in front where stems collide.

    Keys that still collide get a number behind them. The numbers follow the order of class, file name, split
    and path, not the order of `images`; the path comes last because it differs between layouts.

    Args:
        images: Split number (0 is training), path and class id of each image.

    Returns:
        The keys in the order of `images`, and the number of images whose stem collides.
    """
    listed = list(images)
    keys = [_safe(stem_of(path)) for _, path, _ in listed]
    uses = Counter(keys)
    if len(uses) == len(keys):
        return keys, 0
    used = {stem for stem, count in uses.items() if count == 1}
    colliding = [number for number, stem in enumerate(keys) if uses[stem] > 1]

    def name_of(number: int) -> tuple[str, str, int, str]:
        split, path, class_id = listed[number]
        return class_id, path.rpartition("/")[2], split, path

    for number in sorted(colliding, key=name_of):
        _, path, class_id = listed[number]
        key = base = _safe(f"{class_id}-{stem_of(path)}")
        again = 2
        while key in used:
            key, again = f"{base}-{again}", again + 1
        used.add(key)
        keys[number] = key
    return keys, len(colliding)


def _samples(listing: Listing, label_of: dict[str, int], notes: list[str]) -> dict[str, list[Sample]]:
    """Turn entries into samples, sorted by container and path, with keys unique across all splits."""
    for entries in listing.entries.values():
        entries.sort(key=lambda e: (e.container, e.path, e.offset))
    order = [split for split in ("train", "val", "test") if listing.entries.get(split)]
    keys, renamed = unique_keys(
        (number, e.path, e.class_id) for number, split in enumerate(order) for e in listing.entries[split]
    )
    if renamed:
        notes.append(f"{renamed:,} images share a file name with another; their keys have the class in front")
    key = iter(keys)
    return {
        split: [
            Sample(e.path, label_of[e.class_id], next(key), e.size, e.container, e.offset)
            for e in listing.entries.pop(split)
        ]
        for split in order
    }


def _check_fraction(root: str, listing: Listing, val_fraction: float | None) -> None:
    if val_fraction is None:
        return
    if not 0 < val_fraction < 1:
        raise UsageError(f"--val-fraction {val_fraction:g} is not between 0 and 1; 0.1 is usual")
    if listing.entries.get("val"):
        raise UsageError(
            f"--val-fraction {val_fraction:g} was asked for, but {root} has its own validation "
            "images; leave the option out"
        )


def _check_names(root: str, listing: Listing) -> None:
    """Refuse names that are not UTF-8: the manifest and report.csv are UTF-8 and could not hold them."""
    entries = chain.from_iterable(listing.entries.values())
    names = chain.from_iterable((e.path, e.class_id) for e in entries)
    for name in chain(listing.classes or (), names):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(name)
            raise UsageError(f"source {root}: the name {shown!r} is not UTF-8; rename it") from error


def _check_classes(root: str, ids: list[str], listing: Listing) -> None:
    if not any(listing.entries.values()):
        suffixes = "JPEG, PNG, GIF, WebP, BMP, TIFF or PPM"
        raise UsageError(
            f"source {root}: no images found; expected {suffixes} files in CLASS/ or "
            "{train,val}/CLASS/ folders, ImageNet's archives, Parquet files or WebDataset tars"
        )
    if len(ids) < 2:
        raise UsageError(f"source {root}: found one class ({ids[0]}); a classifier needs at least two")
    trained = {entry.class_id for entry in listing.entries.get("train", ())}
    empty = [class_id for class_id in ids if class_id not in trained]
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise UsageError(f"source {root}: no training images for {shown}; add some or remove the class")


def _split_off(samples: list[Sample], fraction: float, seed: int) -> dict[str, list[Sample]]:
    """Move `fraction` of each class's images (rounded) to "val"; each class keeps at least one in "train"."""
    chosen: set[str] = set()
    by_class: dict[int, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    for members in by_class.values():
        members.sort(key=lambda s: shuffle_key(seed, "val-fraction", s.key))
        count = min(round(len(members) * fraction), len(members) - 1)
        chosen.update(s.key for s in members[:count])
    if not chosen:
        raise UsageError(
            f"--val-fraction {fraction:g} of these {len(samples)} images leaves none for validation; raise it"
        )
    return {
        "train": [s for s in samples if s.key not in chosen],
        "val": [s for s in samples if s.key in chosen],
    }


def note_left_out(notes: list[str], place: str, count: int, kind: str, what: str) -> None:
    """Add a line on the files that were left out, if there are any.

    Args:
        notes: Gets the line.
        place: Path or URL of the folder or archive that holds them.
        count: Number of files.
        kind: "file" or "member".
        what: What they are not, such as "image".
    """
    if count:
        are = f"{kind} is" if count == 1 else f"{kind}s are"
        notes.append(f"{place}: {count:,} {are} no {what}, left out")


def is_image(path: str) -> bool:
    """Whether a file name ends with an image suffix, in upper or lower case."""
    return splitext(path)[1].lower() in IMAGE_SUFFIXES


def stem_of(path: str) -> str:
    """Return the last part of a path without its suffix, as `pathlib.PurePath.stem` does."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def _safe(stem: str) -> str:
    """Keep letters, digits and -_+=@~; escape other bytes as %XX; shorten a stem too long for USTAR.

    A dot would end a WebDataset key, and white space would split a line of a DALI index.
    """
    raw = os.fsencode(stem)
    if _SAFE.fullmatch(raw):
        return stem
    safe = re.sub(rb"[^A-Za-z0-9_+=@~-]", lambda m: b"%%%02X" % m.group()[0], raw).decode()
    if len(safe) > _LONGEST_KEY:
        safe = f"{safe[:60]}~{hashlib.sha256(raw).hexdigest()[:16]}"
    return safe or "_"
