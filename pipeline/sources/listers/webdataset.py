"""Lister of WebDataset tars: images beside their labels, `KEY.jpg` with `KEY.cls` or `KEY.json`.

A tar's split is in its name or its folders' names (`imagenet1k-train-0000.tar`, `val/000001.tar`); a tar that
names no split is training data. As in the webdataset library, a member's key is its folder and its name up to
the first dot, and the rest is its extension, in upper or lower case; consecutive members with the same key
are one sample. Where names have more dots (`a.1.jpg`, `a.1.cls`, `a.2.jpg`, ...), members whose names are
equal up to the last dot are one sample. The label is

- in `cls`: an integer or a string, in UTF-8; or
- in `json`: the first existing field of `label`, `cls`, `class`, `class_id` and `target`, of the same types.

Strings of digits become numbers if every label is digits. `pipeline.sources.labelers.labels` turns labels
into classes; a dataset that this toolkit wrote takes its classes from its manifest.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

import msgspec

from pipeline.dataset.manifest import FILE_NAME, ClassInfo
from pipeline.dataset.tar import Member, scan
from pipeline.errors import ToolkitError, UsageError
from pipeline.sources.base import IMAGE_SUFFIXES, Container, Listing
from pipeline.sources.labelers.labels import Found, Label, to_listing, wnid_in
from pipeline.sources.listers.hub import look_for, reading, split_of
from pipeline.sources.spool import unpacked
from pipeline.storage.base import ByteRange, Store

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_FIELDS = ("label", "cls", "class", "class_id", "target")
"""Fields of a sample's JSON that can hold its label, in order of preference."""
_LABELS = ("cls", "json")
# Members that the webdataset library leaves out, and hidden files, such as those that macOS adds.
_SKIPPED = re.compile(r"__[^/]*__($|/)|(.*/)?\.")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_LONGEST_LABEL = 2**24
# Members that detection looks at.
_FIRST_LOOK = 64
# Stands for the unknown length of a tar of which only the start is read.
_ENDLESS = 2**62


class SamplePart(NamedTuple):
    """A tar member that holds an image or a label.

    Attributes:
        key: Key of the sample.
        prefix: Part of the extension before its last dot; "" if it has no dot.
        kind: "image", "cls" or "json".
        member: Name, offset and size of the member.
        content: Bytes of a label; empty for an image.
    """

    key: str
    prefix: str
    kind: str
    member: Member
    content: bytes = b""


TarSample = dict[str, SamplePart]
"""Kind ("image", "cls" or "json") → the sample's part of that kind."""


def detect(store: Store) -> bool:
    """Whether there are tars; beside folders of images, the first tar must hold labeled images."""
    first, images = look_for(store, _is_tar)
    return first is not None and (not images or _begins_labeled(store, first))


def list_samples(store: Store) -> Listing:
    """List the samples of every tar.

    Raises:
        UsageError: A damaged tar; labels without an image; labels that are neither integers nor strings; see
            also `pipeline.sources.labelers.labels.to_listing`.
        RunError: A tar cannot be read.
    """
    containers = tuple(Container(f.path, f.size) for f in store.walk()[0] if _is_tar(f.path))
    found: dict[str, list[Found]] = {}
    without_image: list[str] = []
    for number, container in enumerate(containers):
        split = split_of(container.path)
        rows = found.setdefault(split, [])
        for sample in read_tar(store, container):
            label = _label_of(sample, store.url_of(container.path))
            if image := sample.get("image"):
                name, offset, size = image.member
                wnid = wnid_in(name.rpartition("/")[2], split)
                rows.append(Found(name, label, wnid, size, number, offset))
            elif label is not None:
                name = next(iter(sample.values())).member.name
                without_image.append(f"{store.url_of(container.path)}: {name}")
    if without_image:
        first, *more = without_image
        others = f", and {len(more):,} more labels have none" if more else ""
        raise UsageError(f"{first} has no image beside it{others}; add images or remove the labels")
    _unify(found)
    return to_listing(store, "webdataset", found, containers, classes=_own_classes(store))


def _is_tar(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name.endswith(_SUFFIXES) and not name.startswith("ilsvrc2012_")  # ImageNet's own archives


def _begins_labeled(store: Store, path: str) -> bool:
    """Whether there is a labeled image among a tar's first members."""
    parts: list[SamplePart | None] = []
    # The scan raises at damage and at the tar's end; the members before count all the same.
    with suppress(ToolkitError), unpacked(store, Container(path, store.size(path))) as file:
        parts.extend(map(_part, islice(scan(file, store.url_of(path), end=_ENDLESS), _FIRST_LOOK)))
    labeled = {part.key for part in parts if part and part.kind in _LABELS}
    return any(part and part.kind == "image" and part.key in labeled for part in parts)


def read_tar(store: Store, container: Container) -> Iterator[TarSample]:
    """Yield the samples of a tar in order, with the bytes of their labels.

    Raises:
        UsageError: A damaged tar, or a label larger than 16 MiB.
        RunError: The tar cannot be read.
    """
    url = store.url_of(container.path)
    key, group = "", dict[str, SamplePart]()
    with unpacked(store, container) as file:
        for member in scan(file, url):
            if (part := _part(member)) is None:
                continue
            extension = member.name[len(part.key) :].lower()
            if part.key != key or extension in group:
                yield from _samples(group)
                key, group = part.key, {}
            if part.kind in _LABELS:
                if member.size > _LONGEST_LABEL:
                    raise UsageError(
                        f"{url}: {member.name} has {member.size:,} bytes, too many for a label; remove it"
                    )
                file.seek(member.offset)
                part = part._replace(content=file.read(member.size))
            group[extension] = part
    yield from _samples(group)


def _part(member: Member) -> SamplePart | None:
    folder, slash, name = member.name.rpartition("/")
    base, _, extension = name.partition(".")
    prefix, _, kind = extension.rpartition(".")
    kind = kind.lower()
    if f".{kind}" in IMAGE_SUFFIXES:
        kind = "image"
    elif kind not in _LABELS:
        return None
    return None if _SKIPPED.match(member.name) else SamplePart(f"{folder}{slash}{base}", prefix, kind, member)


def _samples(group: dict[str, SamplePart]) -> Iterator[TarSample]:
    """Yield the samples among the members of one key (extension → part): one, or one for each prefix."""
    by_prefix: dict[str, TarSample] = {}
    merged: TarSample = {}
    for part in group.values():
        by_prefix.setdefault(part.prefix, {}).setdefault(part.kind, part)
        merged.setdefault(part.kind, part)
    # A complete sample has an image and a label.
    complete = {prefix for prefix, sample in by_prefix.items() if "image" in sample and len(sample) > 1}
    if "" in complete:
        yield by_prefix[""]  # members with longer extensions belong to it, such as KEY.mask.png
    elif complete:
        yield from by_prefix.values()
    elif merged:
        yield merged


def _label_of(sample: TarSample, url: str) -> Label | None:
    part = sample.get("cls") or sample.get("json")
    if part is None:
        return None
    try:
        if part.kind == "cls":
            return part.content.decode().strip("\0 \t\r\n") or None
        fields = msgspec.json.decode(part.content)
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise UsageError(f"{url}: {part.member.name} is no label ({error}); correct or remove it") from error
    given = (fields.get(field) for field in LABEL_FIELDS) if isinstance(fields, dict) else ()
    label = next((value for value in given if value is not None), None)
    if label is not None and type(label) not in (int, str):
        raise UsageError(
            f"{url}: {part.member.name} has the label {label!r}; it must be an integer or a string"
        )
    return label


def _unify(found: dict[str, list[Found]]) -> None:
    """Turn string labels into numbers if all of them are digits; else make equal strings one object."""
    texts = {f.label: f.label for rows in found.values() for f in rows if isinstance(f.label, str)}
    numbers = all(map(_NUMBER.fullmatch, texts))
    known: dict[str, Label] = {text: int(text) if numbers else text for text in texts}
    for rows in found.values():
        for f in rows:
            if isinstance(f.label, str):
                f.label = known[f.label]


class _Classes(msgspec.Struct):
    """Fields that tell a manifest.json of this toolkit from another file of that name."""

    classes: tuple[ClassInfo, ...]
    label_width: int


def _own_classes(store: Store) -> tuple[ClassInfo, ...] | None:
    """Return the classes, in label order, of a dataset that this toolkit wrote; None for other tars."""
    if not store.is_file(FILE_NAME):
        return None
    with reading(store.url_of(FILE_NAME), "file"):
        data = store.read(ByteRange(FILE_NAME))
    try:
        return msgspec.json.decode(data, type=_Classes).classes
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{store.url_of(FILE_NAME)}: damaged ({error}); restore or remove it") from error
