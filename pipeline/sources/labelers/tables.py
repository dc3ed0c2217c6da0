"""Labels from a table: CSV, TSV, JSON lines or Parquet with a column of paths and one of labels."""

import csv
import io
from collections.abc import Callable, Container, Iterable, Iterator
from functools import cached_property
from typing import Any

import msgspec

from pipeline.errors import UsageError
from pipeline.sources.base import Image, Label
from pipeline.sources.classes import normal_form
from pipeline.sources.keys import stem_of
from pipeline.sources.labelers.devkit import read_small, read_text
from pipeline.sources.labelers.labels import FractionError, read_numbers
from pipeline.storage.base import Store

ANNOTATIONS = "val_annotations.txt"
"""Tiny ImageNet's labels of its validation images: file name, WNID and a bounding box, separated by tabs."""

_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_id", "imageid", "img", "name")
_LABELS = ("label", "class", "class_id", "class_name", "category", "target", "wnid", "labels")


_ONE_LABEL = "a network for classes needs one label an image: keep one for each"
# Separator of several labels → whether any part must be a label or all must: names hold commas and spaces.
_SEPARATORS: dict[str, Callable[[Iterable[bool]], bool]] = {"|": any, ";": any, ",": all, " ": all}


class LabelTable:
    """Labels by path, by file name, or by its stem; a row labels one image.

    Attributes:
        place: Path or URL of the table.
    """

    def __init__(self, place: str, rows: Iterable[tuple[str, Label]]) -> None:
        """Read the rows. Texts of whole numbers are numbers, if all texts are.

        Raises:
            UsageError: A file has two labels, a label holds several, or all are numbers and one is not whole.
        """
        self.place = place
        found: dict[str, Label] = {}
        for path, label in rows:
            path = path.replace("\\", "/").removeprefix("./")
            if found.setdefault(path, label) != label:
                raise UsageError(f"{place}: {path} has the labels {found[path]} and {label}; {_ONE_LABEL}")
        texts = dict.fromkeys(label for label in found.values() if isinstance(label, str))
        self._refuse_several(found, texts)
        try:
            known = read_numbers(texts)
        except FractionError as error:
            path = next(path for path, label in found.items() if label == str(error))
            raise UsageError(
                f"{place}: {path} has the label {error}; labels must be whole numbers or names"
            ) from error
        self._by_path = {p: known[i] if isinstance(i, str) else i for p, i in found.items()}
        self._by_stem: dict[str, str | None] = {}  # path without its suffix → row; None for different labels
        for path, label in self._by_path.items():
            row = self._by_stem.setdefault(_plain(path), path)
            if row is not None and self._by_path[row] != label:
                self._by_stem[_plain(path)] = None
        self._used: dict[str, str] = {}  # row → its image

    def _refuse_several(self, found: dict[str, Label], labels: Container[str]) -> None:
        """Refuse labels such as "cat|dog" where "cat" or "dog" is a label too."""
        for path, label in found.items():
            for separator, needed in _SEPARATORS.items() if isinstance(label, str) else ():
                parts = str(label).split(separator)
                if len(parts) > 1 and needed(part.strip() in labels for part in parts):
                    raise UsageError(f"{self.place}: {path} has several labels ({label}); {_ONE_LABEL}")

    @cached_property
    def _in_folders(self) -> dict[str, tuple[str, ...]]:
        """Stem → the rows that name a file of this stem with its folder."""
        found: dict[str, tuple[str, ...]] = {}
        for path in self._by_path:
            if "/" in path:
                stem = stem_of(path)
                found[stem] = (*found.get(stem, ()), path)
        return found

    def __len__(self) -> int:
        return len(self._by_path)

    def label_of(self, folder: str, image: Image) -> Label | None:
        """Return an image's label, or None.

        Its row names the longest end of the image's path that the table has, with or without the suffix, or
        is a longer path that ends with the image's: a row with a folder never labels images of other folders.

        Args:
            folder: Folder of the image, with its archive in front.
            image: The image.

        Raises:
            UsageError: The row names another image too, or two rows with different labels may name this one.
        """
        name = image.path.rpartition("/")[2]
        path = f"{folder}/{name}" if folder else name
        row = self._row_of(path) or self._longer_row_of(image.path)
        if row is None:
            return None
        if other := self._used.get(row):
            raise UsageError(
                f"{self.place}: {row} may be {other} or {path}; write the paths below the source into the "
                "table, or name the folder of its images with --splits train=FOLDER"
            )
        self._used[row] = path
        return self._by_path[row]

    def _row_of(self, path: str) -> str | None:
        while path:
            if path in self._by_path:
                return path
            if row := self._by_stem.get(_plain(path)):
                return row
            path = path.partition("/")[2]
        return None

    def _longer_row_of(self, path: str) -> str | None:
        end = f"/{_plain(path)}"
        rows = [row for row in self._in_folders.get(stem_of(path), ()) if _plain(row).endswith(end)]
        rows = [row for row in rows if row.endswith(f"/{path}")] or rows
        if len({self._by_path[row] for row in rows}) > 1:
            raise UsageError(
                f"{self.place}: {path} may be {rows[0]} or {rows[1]}, which have different labels; name the "
                "folder above as the source"
            )
        return rows[0] if rows else None


def _plain(path: str) -> str:
    """Return a path without the suffix of its last part."""
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{stem_of(path)}"


def read_annotations(store: Store, name: str) -> LabelTable:
    """Read Tiny ImageNet's `val_annotations.txt`.

    Raises:
        UsageError: The file cannot be read, or a line is no file name and WNID.
    """
    url = store.url_of(name)
    rows = [line.split("\t") for line in read_text(store, name).splitlines() if line]
    short = next((number for number, row in enumerate(rows, 1) if len(row) < 2), None)
    if short:
        raise UsageError(f"{url}: line {short:,} is not a file name, a tab and a WNID; download it again")
    return LabelTable(url, ((row[0], row[1]) for row in rows))


def read_table(store: Store, name: str, path_column: str | None, label_column: str | None) -> LabelTable:
    """Read a table of labels.

    Args:
        store: Folder of the table.
        name: Its path in there. The suffix says what it is: .csv, .tsv or .txt (tabs), .json or .jsonl (an
            object a line), .parquet.
        path_column: Name of the column of paths; None takes the usual ones.
        label_column: Name of the column of labels; likewise.

    Raises:
        UsageError: The file cannot be read or is no such table; a column is missing; a label is a list, or a
            file has two.
    """
    url, suffix = store.url_of(name), name.lower().rpartition(".")[2]
    readers: dict[str, Callable[[Store, str], Iterator[dict[str, Any]]]] = {
        "csv": lambda store, name: _csv(store, name, ","),
        "tsv": lambda store, name: _csv(store, name, "\t"),
        "txt": lambda store, name: _csv(store, name, "\t"),
        "json": _json_lines,
        "jsonl": _json_lines,
        "parquet": _parquet,
    }
    if suffix not in readers:
        raise UsageError(f"--labels {url}: give a .csv, .tsv, .jsonl or .parquet file")
    rows = readers[suffix](store, name)
    first = next(rows, None)
    if first is None:
        raise UsageError(f"--labels {url}: holds no rows; name a table with a path and a label in each")
    path = _column(url, first, path_column, _PATHS, "--path-column", "paths")
    label = _column(url, first, label_column, _LABELS, "--label-column", "labels")

    def pairs() -> Iterator[tuple[str, Label]]:
        for number, row in enumerate((first, *rows), 1):
            yield "" if row.get(path) is None else str(row[path]), _checked(url, number, row.get(label))

    return LabelTable(url, pairs())


def _column(
    url: str, row: dict[str, Any], given: str | None, usual: tuple[str, ...], option: str, what: str
) -> str:
    if given is not None:
        if given in row:
            return given
        raise UsageError(f"--labels {url}: no column {given}; its columns are {', '.join(row)}")
    known = {name.casefold(): name for name in row}
    found = [known[name] for name in usual if name in known]
    if not found:
        raise UsageError(
            f"--labels {url}: which column holds the {what}? The names in its first line are "
            f"{', '.join(row)}; name one with {option}"
        )
    return found[0]


def _checked(url: str, row: int, label: Any) -> Label:
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if isinstance(label, str) and label.strip():
        return normal_form(label.strip())
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    if isinstance(label, list | tuple | dict):
        raise UsageError(f"--labels {url}: row {row:,} has several labels ({str(label)[:60]}); {_ONE_LABEL}")
    raise UsageError(
        f"--labels {url}: row {row:,} has the label {label!r}; it must be a whole number or a name"
    )


def _csv(store: Store, name: str, separator: str) -> Iterator[dict[str, Any]]:
    try:
        yield from csv.DictReader(io.StringIO(read_text(store, name)), delimiter=separator, strict=True)
    except csv.Error as error:
        raise UsageError(f"--labels {store.url_of(name)}: no table: {error}") from error


def _json_lines(store: Store, name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from msgspec.json.Decoder(dict[str, Any]).decode_lines(read_small(store, name))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--labels {store.url_of(name)}: not a JSON object a line: {error}") from error


def _parquet(store: Store, name: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(read_small(store, name)))
    except pa.ArrowException as error:
        raise UsageError(f"--labels {store.url_of(name)}: no Parquet file: {error}") from error
    yield from table.to_pylist()
