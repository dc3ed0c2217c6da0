"""Checks of arguments: words of a closed set, and numbers within a range."""

import difflib
import math
import types
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.errors import UsageError

Range = tuple[float, float]
"""Lowest and highest number that is accepted; `math.inf` for no limit."""


def check_word(name: str, value: object, choices: Any) -> None:
    """Check that a value is a word of a closed set.

    Args:
        name: Name of the argument, for the message.
        value: What was given.
        choices: A `Literal` type, unions of them included, or the words themselves.

    Raises:
        UsageError: It is another value; the message names the nearest word and lists all.
    """
    words = words_of(choices) or tuple(choices)
    if value not in words:
        raise UsageError(f"{name} is {value!r}; {suggestion(str(value), words)}")


def suggestion(value: str, words: Iterable[str]) -> str:
    """Return "did you mean 'a'? choose from 'a', 'b'" for a value that is none of the words."""
    known = list(words)
    near = difflib.get_close_matches(value.lower(), known, n=1, cutoff=0.0)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}choose from {', '.join(map(repr, known))}"


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> None:
    """Check that a value is a number from `low` to `high`, and not NaN.

    Raises:
        UsageError: It is another value.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name} is {value!r}, not a number")
    if not low <= float(value) <= high:
        limits = f"{low:g} or more" if high == math.inf else f"within {low:g}..{high:g}"
        raise UsageError(f"{name} is {float(value):g}, not {limits}")


def check_whole(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> None:
    """Check that a value is a whole number from `low` to `high`.

    Raises:
        UsageError: It is another value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name} is {value!r}, not a whole number")
    check_number(name, value, low, high)


def check_record(record: Any, **ranges: Range) -> None:
    """Check the fields of a dataclass instance, by their annotations: words, numbers and whole numbers.

    Fields whose annotation allows None may be None. Fields of other types are not checked.

    Args:
        record: The instance; call this in its `__post_init__`.
        ranges: Field → the numbers that it accepts, or each number of a tuple; any number by default.

    Raises:
        UsageError: A field has a value that is none of the words, not a number, or out of range.
    """
    kind: Any = type(record)
    for name, (check, optional, choices) in _checks(kind).items():
        value = getattr(record, name)
        if value is None and optional:
            continue
        if check is check_word:
            check_word(name, value, choices)
        else:
            check(name, value, *ranges.get(name, ()))


def words_of(annotation: Any) -> tuple[str, ...]:
    """Return the words of a `Literal`, of a union of literals and None, or () for another annotation."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return ()
    members = [member for member in get_args(annotation) if member is not type(None)]
    words = [words_of(member) for member in members]
    return tuple(word for part in words for word in part) if all(words) else ()


@cache
def _checks(record: Any) -> dict[str, tuple[Any, bool, Any]]:
    """Return field → its check, whether it may be None, and its words."""
    hints = get_type_hints(record)
    found: dict[str, tuple[Any, bool, Any]] = {}
    for field in fields(record):
        hint = hints[field.name]
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        optional = type(None) in members
        kinds = [member for member in members if member is not type(None)]
        if words := words_of(hint):
            found[field.name] = (check_word, optional, words)
        elif kinds == [int]:
            found[field.name] = (check_whole, optional, ())
        elif kinds in ([float], [int, float]):
            found[field.name] = (check_number, optional, ())
    return found
