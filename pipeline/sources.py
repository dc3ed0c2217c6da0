"""What there is to prepare: class folders, listed once into labelled samples with unique keys."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UsageError

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"],
)
_SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
# A tar member's name may have 100 bytes in USTAR; a key keeps room for its extension.
_LONGEST_KEY = 80


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture: its `path` below the source's root (with /), its label and its tar key."""

    path: str
    label: int
    key: str


@dataclass(frozen=True)
class ClassInfo:
    """A class: the folder's name as `id`, and a name to show."""

    id: str
    name: str


@dataclass(frozen=True)
class Source:
    """A listed source.

    Attributes:
        root: the folder that sample paths are relative to.
        layout: how it was read, for the manifest.
        classes: in label order, which is sorted folder name.
        splits: "train", and "val" and "test" where present → samples in path order.
        notes: lines worth telling the user, such as files left out.
    """

    root: Path
    layout: str
    classes: tuple[ClassInfo, ...]
    splits: dict[str, list[Sample]]
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """SHA-256 over every sample's split, path, label and size in bytes.

        Raises:
            UsageError: a file is gone since it was listed, or a link leads nowhere.
        """
        digest = hashlib.sha256()
        for split, samples in self.splits.items():
            for sample in samples:
                size = _size_of(self.root / sample.path)
                digest.update(f"{split}\0{sample.path}\0{sample.label}\0{size}\n".encode())
        return digest.hexdigest()


def read_class_folders(root: Path, val_fraction: float | None = None, seed: int = 0) -> Source:
    """List `root/{train,val|validation,test}/CLASS/*`, or `root/CLASS/*` as training data.

    Pictures are found at any depth below a class folder; hidden files are left out, and files without
    a picture's suffix are left out and counted in `notes`.

    Args:
        root: the source folder.
        val_fraction: share of each class that becomes the "val" split, chosen by `seed`, for sources
            that have none. A class keeps at least one training picture.
        seed: of the choice.

    Raises:
        UsageError: missing, empty or unreadable folder; no pictures; one class; a class without
            training pictures; a name that is not UTF-8; a `val_fraction` beside an existing validation
            split or outside 0..1.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UsageError(f"--val-fraction {val_fraction:g} is not between 0 and 1; 0.1 is usual")
    if not root.is_dir():
        found = "it is a file" if root.exists() else "it does not exist"
        raise UsageError(f"source {root}: {found}; name a folder of class folders")
    notes: list[str] = []
    files = _list_splits(root, notes)
    if "val" in files and val_fraction is not None:
        raise UsageError(
            f"--val-fraction {val_fraction:g} was asked for, but {root} has its own validation "
            "folder; leave the option out"
        )
    ids = sorted({class_id for split in files.values() for class_id in split})
    _check_names(root, ids, files)
    _check_classes(root, ids, files)
    label_of = {class_id: label for label, class_id in enumerate(ids)}
    labelled = {
        split: [(path, label_of[class_id]) for class_id in classes for path in classes[class_id]]
        for split, classes in files.items()
    }
    keys = _unique_keys(path for split in labelled.values() for path, _ in split)
    splits = {
        split: [Sample(path, label, keys[path]) for path, label in sorted(pairs)]
        for split, pairs in labelled.items()
        if pairs
    }
    if val_fraction is not None:
        splits = splits | _split_off(splits["train"], val_fraction, seed)
        missing = len(ids) - len({sample.label for sample in splits["val"]})
        if missing:
            notes.append(
                f"val: {missing} of {len(ids)} classes are too small for --val-fraction {val_fraction:g}"
            )
    return Source(root, "class-folders", tuple(ClassInfo(i, i) for i in ids), splits, notes)


def rank(seed: int, purpose: str, key: str) -> bytes:
    """A sample's place in the seeded order of `purpose`: sort by it to shuffle.

    A hash instead of a generator's stream: it is the same for every library version, and a picture
    more or less leaves the others' order alone.
    """
    return hashlib.blake2b(f"{seed}/{purpose}/{key}".encode(), digest_size=16).digest()


def _list_splits(root: Path, notes: list[str]) -> dict[str, dict[str, list[str]]]:
    """Split → class → picture paths below `root`."""
    entries = {entry.name: Path(entry.path) for entry in _visible(root) if entry.is_dir()}
    named = {name: split for name, split in _SPLIT_FOLDERS.items() if name in entries}
    if "train" not in named:
        if named:
            raise UsageError(
                f"source {root}: found the folders {', '.join(sorted(named))} but no train; "
                "name a source with train/CLASS/ folders"
            )
        return {"train": _list_classes(root, root, notes)}
    if {"val", "validation"} <= named.keys():
        raise UsageError(f"source {root}: found both val and validation; keep one of them")
    splits = {split: _list_classes(root, entries[name], notes) for name, split in named.items()}
    for split in ("val", "test"):
        if split in splits and not any(splits[split].values()):
            notes.append(f"{split}: no class folders with pictures, left out")
            del splits[split]
    return splits


def _list_classes(root: Path, folder: Path, notes: list[str]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    others = 0
    for entry in sorted(_visible(folder), key=lambda e: e.name):
        if not entry.is_dir():
            others += 1
            continue
        pictures, skipped = _list_pictures(Path(entry.path), root)
        classes[entry.name] = pictures
        others += skipped
    if others:
        plural = "file is" if others == 1 else "files are"
        notes.append(f"{folder}: {others} {plural} no picture in a class folder, left out")
    return classes


def _list_pictures(folder: Path, root: Path) -> tuple[list[str], int]:
    """Sorted picture paths below `folder`, relative to `root`, and how many other files there are."""
    pictures, others = [], 0
    visited: set[str] = set()  # links are followed, but not in circles
    for current, folders, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        if (real := os.path.realpath(current)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                pictures.append((Path(current) / name).relative_to(root).as_posix())
            else:
                others += 1
    return sorted(pictures), others


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        _raise_unreadable(error)


def _raise_unreadable(error: OSError) -> None:
    raise UsageError(f"cannot read {error.filename}: {error.strerror}; check its permissions") from error


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; restore or remove it") from error


def _check_names(root: Path, ids: list[str], files: dict[str, dict[str, list[str]]]) -> None:
    """Manifest and report are UTF-8: a name in another encoding would have no place there."""
    paths = (path for split in files.values() for pictures in split.values() for path in pictures)
    for name in (*ids, *paths):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"source {root}: the name {os.fsencode(name)!r} is not UTF-8; rename it"
            ) from error


def _check_classes(root: Path, ids: list[str], files: dict[str, dict[str, list[str]]]) -> None:
    if not any(pictures for split in files.values() for pictures in split.values()):
        suffixes = "JPEG, PNG, GIF, WebP, BMP, TIFF or PPM"
        raise UsageError(
            f"source {root}: no pictures found; expected {suffixes} files in CLASS/ or "
            "{train,val}/CLASS/ folders"
        )
    if len(ids) < 2:
        raise UsageError(
            f"source {root}: found one class ({ids[0]}); a classifier needs at least two class folders"
        )
    empty = [class_id for class_id in ids if not files["train"].get(class_id)]
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise UsageError(f"source {root}: no training pictures for {shown}; add some or remove the folder")


def _split_off(samples: list[Sample], fraction: float, seed: int) -> dict[str, list[Sample]]:
    """Move `fraction` of each class to "val"; rounded, and never a class's last picture."""
    chosen: set[str] = set()
    by_class: dict[int, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    for members in by_class.values():
        members.sort(key=lambda s: rank(seed, "val-fraction", s.key))
        count = min(round(len(members) * fraction), len(members) - 1)
        chosen.update(s.key for s in members[:count])
    if not chosen:
        raise UsageError(
            f"--val-fraction {fraction:g} of these {len(samples)} pictures leaves none for "
            "validation; raise it"
        )
    return {
        "train": [s for s in samples if s.key not in chosen],
        "val": [s for s in samples if s.key in chosen],
    }


def _unique_keys(paths: Iterable[str]) -> dict[str, str]:
    """Path → tar key: the file's stem, made safe, with its folder in front where stems collide."""
    stems = {path: _safe(Path(path).stem) for path in paths}
    taken = Counter(stems.values())
    keys: dict[str, str] = {}
    used: set[str] = {stem for stem, count in taken.items() if count == 1}
    for path in sorted(stems):
        stem = stems[path]
        if taken[stem] > 1:
            key = base = _safe(f"{Path(path).parent.name}-{Path(path).stem}")
            number = 2
            while key in used:
                key, number = f"{base}-{number}", number + 1
            used.add(key)
            stem = key
        keys[path] = stem
    return keys


def _safe(stem: str) -> str:
    """Keep letters, digits and -_+=@~; escape other bytes as %XX; shorten what USTAR cannot hold.

    A dot would split a WebDataset key, white space a DALI index line.
    """
    raw = os.fsencode(stem)
    safe = re.sub(rb"[^A-Za-z0-9_+=@~-]", lambda m: b"%%%02X" % m.group()[0], raw).decode()
    if len(safe) > _LONGEST_KEY:
        safe = f"{safe[:60]}~{hashlib.sha256(raw).hexdigest()[:16]}"
    return safe or "_"
