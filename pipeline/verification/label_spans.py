"""Where the labels of other tools' tars stand, so that DALI's reader can be pointed at them.

DALI reads what an index names, and wants each entry to begin at a block of the tar. An entry for a label
therefore begins at the block that holds its first digit and ends with its last one; the graph takes the
digits off its end. So a label may be a .cls member of any width, or stand somewhere inside a .json member.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from pipeline.errors import UsageError
from pipeline.sources.base import Container
from pipeline.sources.listers.webdataset import _FIELDS, _Part, _read_tar
from pipeline.storage.base import Store

BLOCK = 512
REMEDY = "run `alexnet-prep shard FOLDER OUT --layout webdataset` instead"
"""What to do about tars that cannot be read in place."""
_NUMBER = re.compile(rb"\s*\+?([0-9]+)[\s\0]*")
_FIELD = re.compile(rb'"(?:%s)"\s*:\s*"?\s*\+?([0-9]+)' % "|".join(_FIELDS).encode())


class LabelSpan(NamedTuple):
    """Bytes of a tar that end with a label's last digit: `offset` (a block's), `size`, and the `value`."""

    offset: int
    size: int
    value: int


def locate(store: Store, container: Container, pictures: Iterable[int]) -> list[LabelSpan]:
    """Find the label of each picture in a tar.

    Args:
        store: the folder of the tar.
        container: the tar.
        pictures: where their bytes start.

    Raises:
        UsageError: a damaged tar, or a label that is no whole number.
    """
    place = store.place(container.path)
    labels: dict[int, _Part] = {}
    for sample in _read_tar(store, container):
        picture, label = sample.get("picture"), sample.get("cls") or sample.get("json")
        if picture and label:
            labels[picture.member.offset] = label
    return [_span(place, labels[offset]) for offset in pictures]


def _span(place: str, label: _Part) -> LabelSpan:
    data = label.content
    found = _NUMBER.fullmatch(data) if label.kind == "cls" else _digits_in_json(data)
    if found is None:
        text = ascii(data[:40].decode("utf-8", "replace"))
        raise UsageError(
            f"{place}: {label.member.name} has no whole number as its label ({text}), and only numbers are "
            f"read in place; {REMEDY}"
        )
    start, end = (label.member.offset + at for at in found.span(1))
    block = start // BLOCK * BLOCK
    return LabelSpan(block, end - block, int(found[1]))


def _digits_in_json(data: bytes) -> re.Match[bytes] | None:
    """The digits that set the label; objects inside may have fields of the same names."""
    label = _json_label(data)
    for match in _FIELD.finditer(data):
        other = b"1" if match[1] != b"1" else b"2"
        changed = data[: match.start(1)] + other + data[match.end(1) :]
        if label == int(match[1]) != _json_label(changed):
            return match
    return None


def _json_label(data: bytes) -> int | None:
    """The whole number that the first of the label's fields holds, as a number or a text."""
    fields = msgspec.json.decode(data)
    given = (fields.get(name) for name in _FIELDS)
    text = str(next((value for value in given if value is not None), ""))
    return int(text) if re.fullmatch(r"\s*\+?[0-9]+\s*", text) else None
