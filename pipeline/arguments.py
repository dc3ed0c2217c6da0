"""Checks of arguments: words of a closed set, and numbers within a range."""

import difflib
import inspect
import math
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, wraps
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.errors import UsageError

Range = tuple[float, float]
"""Lowest and highest number that is accepted; `math.inf` for no limit."""

COUNT = (1, math.inf)
"""Range of what there must be at least one of."""
LEAST = math.ulp(0.0)
"""The smallest number above 0, as the lower end of a range."""
POSITIVE = (LEAST, math.inf)
"""Range of numbers above 0."""
SIZES = (8, 4096)
"""Range of the shorter side of stored images, in pixels."""
_ANY = (-math.inf, math.inf)

P = ParamSpec("P")
R = TypeVar("R")


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
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise UsageError(f"{name} is {value!r}, not a number")
    if not low <= float(value) <= high:
        limits = f"within {low:g}..{high:g}" if high < math.inf else f"{low:g} or more"
        if low == LEAST:
            limits = "above 0" if high == math.inf else f"above 0 and at most {high:g}"
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
        ranges: Field → the lowest and highest number that it accepts; any number by default.

    Raises:
        UsageError: A field has a value that is none of the words, not a number, or out of range.
    """
    kind: Any = type(record)
    for name, check in _checks(kind).items():
        check(name, getattr(record, name), ranges.get(name, _ANY))


def checked(**ranges: Range) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that checks a function's arguments as `check_record` checks fields.

    The arguments of a generator function are checked when it is called.

    Args:
        ranges: Parameter → the lowest and highest number that it accepts; any number by default.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        checks = _checks_of({name: p.annotation for name, p in signature.parameters.items()})

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            for name, check in checks.items():
                if name in given:
                    check(name, given[name], ranges.get(name, _ANY))
            return function(*args, **kwargs)

        return call

    return decorate


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
def _checks(record: Any) -> dict[str, "_Check"]:
    return _checks_of(get_type_hints(record))


def _checks_of(annotations: dict[str, Any]) -> dict[str, "_Check"]:
    """Return the check of each name whose annotation is words, a number or a whole number, maybe None."""
    found = {}
    for name, annotation in annotations.items():
        union = get_origin(annotation) in (Union, types.UnionType)
        members = set(get_args(annotation) if union else (annotation,))
        words = words_of(annotation)
        if words or members - {type(None)} in ({int}, {float}, {int, float}):
            found[name] = _Check(words, whole=float not in members, optional=type(None) in members)
    return found


@dataclass(frozen=True)
class _Check:
    """How a field or argument is checked: by its words, else as a number."""

    words: tuple[str, ...]
    whole: bool
    optional: bool

    def __call__(self, name: str, value: object, limits: Range) -> None:
        if value is None and self.optional:
            return
        if self.words:
            check_word(name, value, self.words)
        elif self.whole:
            check_whole(name, value, *limits)
        else:
            check_number(name, value, *limits)
