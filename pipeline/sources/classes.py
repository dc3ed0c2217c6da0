"""Classes of a source: their order, a list that chooses among them, and spellings of one name."""

import csv
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from pipeline.errors import UsageError


def class_order(ids: Iterable[str]) -> list[str]:
    """Sort class ids: as numbers if all of them are (0, 1, 2, …, 10), else as text."""
    found = set(ids)
    if all(class_id.isascii() and class_id.isdecimal() for class_id in found):
        return sorted(found, key=lambda class_id: (int(class_id), class_id))
    return sorted(found)


def normal_form(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), which class ids have."""
    return unicodedata.normalize("NFC", name)


def normalized(names: Iterable[str], place: str) -> dict[str, str]:
    """Return name → its NFC form, which is the class id.

    macOS writes accents as characters of their own (NFD): the same folder, copied, has two spellings.

    Args:
        names: Class names of one split.
        place: Path or URL of the split, for messages.

    Raises:
        UsageError: Two names of the split are one name in two spellings.
    """
    spelled: dict[str, str] = {}
    for name in names:
        form = normal_form(name)
        if other := spelled.get(form):
            raise UsageError(
                f"{place}: the classes {other!a} and {name!a} are one name in two Unicode "
                "spellings (NFC and NFD); merge them into one"
            )
        spelled[form] = name
    return {name: form for form, name in spelled.items()}


def read_class_list(file: Path) -> tuple[str, ...]:
    """Read a list of classes: a line each, with a WNID, a name or an index.

    Of a .csv file the first column counts, of other files the line up to a tab; of a line such as
    `n01440764 tench, Tinca tinca` the WNID alone. Empty lines and lines that start with # are left out.

    Raises:
        UsageError: The file cannot be read, is empty, or names a class twice.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--classes {file}: cannot be read: {reason}; name a text file") from error
    if file.suffix.lower() == ".csv":
        first = [row[0] for row in csv.reader(text.splitlines()) if row]
    else:
        first = [line.partition("\t")[0] for line in text.splitlines()]
    found = [_entry(name) for name in first if name.strip() and not name.startswith("#")]
    if not found:
        raise UsageError(f"--classes {file}: holds no classes; write one a line")
    if twice := [name for name, times in Counter(found).items() if times > 1]:
        raise UsageError(f"--classes {file}: names {twice[0]} twice; keep one of the lines")
    return tuple(found)


def _entry(line: str) -> str:
    word, _, _ = line.strip().partition(" ")
    return word if len(word) == 9 and word[0] == "n" and word[1:].isdecimal() else line.strip()


def chosen_classes(wanted: Sequence[str], ids: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return the ids of the wanted classes, in their order.

    Args:
        wanted: Ids, names to show (or the first of several, before a comma), or indices into `ids`.
        ids: Ids of all classes, in label order.
        names: Class id → name to show.

    Raises:
        UsageError: A wanted class is unknown or wanted twice, or a name is that of two classes.
    """
    known = {class_id: class_id for class_id in ids}
    by_name, same_name = _unambiguous((names.get(class_id, class_id), class_id) for class_id in ids)
    by_first, same_first = _unambiguous(
        (names.get(class_id, class_id).partition(",")[0], class_id) for class_id in ids
    )
    by_index = {str(index): class_id for index, class_id in enumerate(ids)}
    tables = (known, by_name, by_first, by_index)
    table = next((t for t in tables if all(normal_form(w) in t for w in wanted)), None)
    if table is None:
        everything = known | by_name | by_first
        several = same_first | same_name
        unknown = next(
            (w for w in wanted if normal_form(w) not in everything and normal_form(w) not in several), None
        )
        name = next((w for w in wanted if normal_form(w) in several), None)
        if unknown is None and name is not None:
            one, other = several[normal_form(name)]
            raise UsageError(f"--classes: {name} names two classes: {one} and {other}; give their ids")
        unknown = unknown or wanted[0]
        near = get_close_matches(unknown, everything, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(
            f"--classes: {unknown} is none of the {len(ids):,} classes of the source{hint}; give ids, names "
            "or indices, one kind for all"
        )
    found = [table[normal_form(name)] for name in wanted]
    if len(set(found)) < len(found):
        raise UsageError("--classes: two of its lines name the same class; keep one")
    return found


def _unambiguous(pairs: Iterable[tuple[str, str]]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Return name → class id where a name is that of one class; and the others with two of their classes."""
    found: dict[str, str] = {}
    several: dict[str, tuple[str, str]] = {}
    for name, class_id in pairs:
        if (other := found.setdefault(name, class_id)) != class_id:
            several[name] = (other, class_id)
    return {name: class_id for name, class_id in found.items() if name not in several}, several
