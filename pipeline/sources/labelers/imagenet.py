"""What ILSVRC 2012 ships beside its images: class names, and labels of the validation images."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.sources.labelers.devkit import DEVKIT, META, WNID, read_devkit, read_small
from pipeline.storage.base import Store

MAPPING = "LOC_synset_mapping.txt"
"""Kaggle's file of class names: `n01440764 tench, Tinca tinca` in each line."""
SOLUTION = "LOC_val_solution.csv"
"""Kaggle's file of validation labels: `ImageId,PredictionString`; a prediction begins with the WNID."""

_KITS = (f"{DEVKIT}/{META}", f"{DEVKIT}.tar.gz")


@dataclass(frozen=True)
class Labels:
    """What the label files of a source say.

    Attributes:
        names: WNID → name to show; empty without a mapping file or a devkit.
        tables: place of a label file → validation image (its file's stem) → WNID.
        devkit: place of the devkit, and the WNIDs of its classes; None where it was not read.
        root: the source's root.
    """

    names: dict[str, str]
    tables: dict[str, dict[str, str]]
    devkit: tuple[str, frozenset[str]] | None
    root: str

    def check_classes(self, train: str, ids: Iterable[str]) -> None:
        """Check that the devkit knows the classes that were found in `train`.

        Raises:
            UsageError: it does not.
        """
        if self.devkit is None:
            return
        place, known = self.devkit
        unknown = sorted(set(ids) - known)
        if unknown:
            others = f" and {len(unknown) - 1:,} more of its classes" if unknown[1:] else ""
            raise UsageError(
                f"{place} does not match {train}: it lacks {unknown[0]}{others}; take both from ILSVRC 2012"
            )

    def classes_of(self, val: str, stems: Sequence[str]) -> list[str]:
        """WNIDs of the validation images with these stems, which were found in `val`.

        Raises:
            UsageError: there is no label file, one has no label for an image, or two disagree.
        """
        if not self.tables:
            raise UsageError(
                f"{val}: no labels for its {len(stems):,} images; put {DEVKIT}.tar.gz or {SOLUTION} into "
                f"{self.root}, or name a folder above it that holds one of them"
            )
        for place, table in self.tables.items():
            unlabeled = [stem for stem in stems if stem not in table]
            if unlabeled:
                count = f"{len(unlabeled):,} of {len(stems):,} images"
                raise UsageError(
                    f"{place} does not match {val}: {count} are not among its {len(table):,} labels, the "
                    f"first is {min(unlabeled)}; take both from ILSVRC 2012"
                )
        (place, table), *others = self.tables.items()
        for other, again in others:
            differing = min((stem for stem in stems if table[stem] != again[stem]), default=None)
            if differing is not None:
                raise UsageError(
                    f"{place} and {other} disagree: {differing} is {table[differing]} in the one and "
                    f"{again[differing]} in the other; remove the wrong one"
                )
        return [table[stem] for stem in stems]


def read_labels(store: Store, folders: Sequence[str], labels: bool = True) -> Labels:
    """Read the label files in `folders` (below the root); of each kind the first that is found.

    Args:
        store: the source.
        folders: where to look, in this order.
        labels: whether validation labels are wanted, not class names alone.

    Raises:
        UsageError: a file that cannot be read, is damaged or contradicts itself.
    """
    mapping = _first(store, folders, [MAPPING])
    names = read_mapping(store, mapping) if mapping else {}
    tables: dict[str, dict[str, str]] = {}
    known = None
    kit = _first(store, folders, _KITS)
    if kit and (labels or not names):
        devkit = read_devkit(store, kit)
        known = devkit.place, frozenset(devkit.names)
        names = names or devkit.names
        tables[devkit.place] = devkit.labels
    solution = _first(store, folders, [SOLUTION])
    if solution and labels:
        tables[store.url_of(solution)] = read_solution(store, solution)
    return Labels(names, tables, known, store.url)


def has_labels(store: Store, folder: str = "") -> bool:
    """Whether `folder` has a file of validation labels."""
    return _first(store, [folder], [SOLUTION, *_KITS]) is not None


def read_mapping(store: Store, name: str) -> dict[str, str]:
    """Class → name to show, of a file like `LOC_synset_mapping.txt`.

    Raises:
        UsageError: it cannot be read, is not UTF-8, or names a class twice.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(_text(store, name).splitlines(), 1):
        class_id, _, words = line.strip().partition(" ")
        if class_id in names:
            raise UsageError(
                f"{store.url_of(name)}: line {number:,} names {class_id} again; keep one of them"
            )
        if class_id:
            names[class_id] = words.strip() or class_id
    return names


def read_solution(store: Store, name: str) -> dict[str, str]:
    """Validation image (its file's stem) → WNID, of a file like `LOC_val_solution.csv`.

    Raises:
        UsageError: it cannot be read, is no such CSV, or gives an image two classes.
    """
    place, again = store.url_of(name), "get the file from Kaggle again"
    rows = csv.reader(io.StringIO(_text(store, name)), strict=True)
    table: dict[str, str] = {}
    try:
        if [column.strip() for column in next(rows, [])] != ["ImageId", "PredictionString"]:
            raise UsageError(f"{place}: its first line is not ImageId,PredictionString; {again}")
        for row in filter(None, rows):
            wnid = row[1].partition(" ")[0] if len(row) == 2 else ""
            if not WNID.fullmatch(wnid):
                raise UsageError(
                    f"{place}: line {rows.line_num:,} is not an image, a comma and a WNID such as "
                    f"n01440764; {again}"
                )
            if table.setdefault(row[0], wnid) != wnid:
                raise UsageError(f"{place}: line {rows.line_num:,} gives {row[0]} another class; {again}")
    except csv.Error as error:
        raise UsageError(f"{place}: line {rows.line_num:,} is no CSV: {error}; {again}") from error
    return table


def _first(store: Store, folders: Sequence[str], names: Sequence[str]) -> str | None:
    paths = (f"{folder}/{name}".lstrip("/") for folder in folders for name in names)
    return next((path for path in paths if store.is_file(path)), None)


def _text(store: Store, name: str) -> str:
    try:
        return read_small(store, name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{store.url_of(name)}: not UTF-8 text (byte {error.start:,}); download it again"
        ) from error
