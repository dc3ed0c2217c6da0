"""Read ILSVRC 2012's label files: class names, and labels of the validation images."""

import csv
import io
from collections.abc import Iterable, Sequence

from pipeline.errors import UsageError
from pipeline.sources.labelers.devkit import DEVKIT, META, read_devkit, read_text
from pipeline.sources.labelers.wnids import WNID
from pipeline.storage.base import Store

MAPPING = "LOC_synset_mapping.txt"
"""Kaggle's file of class names, with lines such as `n01440764 tench, Tinca tinca`."""
WORDS = "words.txt"
"""Tiny ImageNet's file of class names: a WNID, a tab and its words a line."""
SOLUTION = "LOC_val_solution.csv"
"""Kaggle's file of validation labels, with columns `ImageId,PredictionString`; the latter starts with the
WNID."""

_KITS = (f"{DEVKIT}/{META}", f"{DEVKIT}.tar.gz")


def read_labels(
    store: Store, folders: Sequence[str], train: str, classes: Iterable[str], val: str, stems: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Read a source's label files: of each kind, the first that is found.

    Args:
        store: The source.
        folders: Folders to search, in this order, relative to the root.
        train: Path or URL of the training images, for messages.
        classes: WNIDs of their classes.
        val: Path or URL of the validation images, for messages.
        stems: Stems of their file names. Without any, only class names are read.

    Returns:
        WNID → name to show, which is empty without a mapping file or a devkit; and the WNID of each
        validation image.

    Raises:
        UsageError: A file cannot be read, is damaged or contradicts itself; there are validation images but
            no labels; a label file lacks an image or a class; two label files disagree.
    """
    mapping = _first(store, folders, [MAPPING, WORDS])
    names = read_mapping(store, mapping) if mapping else {}
    tables: dict[str, dict[str, str]] = {}
    kit = _first(store, folders, _KITS)
    if kit and (stems or not names):
        devkit = read_devkit(store, kit)
        unknown = sorted(set(classes) - devkit.names.keys())
        if unknown:
            others = f" and {len(unknown) - 1:,} more of its classes" if unknown[1:] else ""
            raise UsageError(
                f"{devkit.place} does not match {train}: it lacks {unknown[0]}{others}; take both from "
                "ILSVRC 2012"
            )
        names = names or devkit.names
        tables[devkit.place] = devkit.labels
    solution = _first(store, folders, [SOLUTION])
    if solution and stems:
        tables[store.url_of(solution)] = read_solution(store, solution)
    if stems and not tables:
        raise UsageError(
            f"{val} was read as flat images, but there are no labels for its {len(stems):,} images, such as "
            f"{min(stems)}; put {DEVKIT}.tar.gz or {SOLUTION} into {store.url}, or name a folder above it "
            "that holds one of them"
        )
    return names, _agreed(tables, val, stems) if stems else []


def _agreed(tables: dict[str, dict[str, str]], val: str, stems: Sequence[str]) -> list[str]:
    """Return the WNID of each image; `tables` is path or URL of each label file → stem → WNID."""
    for url, table in tables.items():
        unlabeled = [stem for stem in stems if stem not in table]
        if unlabeled:
            count = f"{len(unlabeled):,} of {len(stems):,} images"
            raise UsageError(
                f"{url} does not match {val}: {count} are not among its {len(table):,} labels, the "
                f"first is {min(unlabeled)}; take both from ILSVRC 2012"
            )
    (url, table), *others = tables.items()
    for other_url, other in others:
        differing = min((stem for stem in stems if table[stem] != other[stem]), default=None)
        if differing is not None:
            raise UsageError(
                f"{url} and {other_url} disagree: {differing} is {table[differing]} in the one and "
                f"{other[differing]} in the other; remove the wrong one"
            )
    return [table[stem] for stem in stems]


def has_labels(store: Store, folder: str = "") -> bool:
    """Whether `folder` holds a file with validation labels: Kaggle's CSV or a devkit."""
    return _first(store, [folder], [SOLUTION, *_KITS]) is not None


def read_mapping(store: Store, name: str) -> dict[str, str]:
    """Return class id → name to show, from a file in the format of `LOC_synset_mapping.txt`.

    Raises:
        UsageError: The file cannot be read, is not UTF-8, or names a class twice.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(read_text(store, name).splitlines(), 1):
        class_id, _, words = line.strip().replace("\t", " ", 1).partition(" ")
        if class_id in names:
            raise UsageError(
                f"{store.url_of(name)}: line {number:,} names {class_id} a second time; keep one of the lines"
            )
        if class_id:
            names[class_id] = words.strip() or class_id
    return names


def read_solution(store: Store, name: str) -> dict[str, str]:
    """Return stem of each validation image → WNID, from a file in the format of `LOC_val_solution.csv`.

    Raises:
        UsageError: The file cannot be read, is no such CSV, or gives an image two classes.
    """
    url, again = store.url_of(name), "get the file from Kaggle again"
    rows = csv.reader(io.StringIO(read_text(store, name)), strict=True)
    table: dict[str, str] = {}
    try:
        if [column.strip() for column in next(rows, [])] != ["ImageId", "PredictionString"]:
            raise UsageError(f"{url}: its first line is not ImageId,PredictionString; {again}")
        for row in filter(None, rows):
            wnid = row[1].partition(" ")[0] if len(row) == 2 else ""
            if not WNID.fullmatch(wnid):
                raise UsageError(
                    f"{url}: line {rows.line_num:,} is not an image, a comma and a WNID such as "
                    f"n01440764; {again}"
                )
            if table.setdefault(row[0], wnid) != wnid:
                raise UsageError(f"{url}: line {rows.line_num:,} gives {row[0]} another class; {again}")
    except csv.Error as error:
        raise UsageError(f"{url}: line {rows.line_num:,} is no CSV: {error}; {again}") from error
    return table


def _first(store: Store, folders: Sequence[str], names: Sequence[str]) -> str | None:
    paths = (f"{folder}/{name}".lstrip("/") for folder in folders for name in names)
    return next((path for path in paths if store.is_file(path)), None)
