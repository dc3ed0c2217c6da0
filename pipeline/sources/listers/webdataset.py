"""WebDataset tars: images beside their labels, `KEY.jpg` and `KEY.cls` or `KEY.json`.

A tar's split is in its name or its folders' (`imagenet1k-train-0000.tar`, `val/000001.tar`); one that names
none is training data. As for the webdataset library, a member's key is its folder and its name up to the
first dot, the rest its extension, in any case; a sample is what stands together under one key. Where names
have dots (`a.1.jpg`, `a.1.cls`, `a.2.jpg`, ...), what is equal up to the last one is a sample. A label is

- in `cls`: a number or a text, in UTF-8; or
- in `json`: the first of `label`, `cls`, `class`, `class_id` and `target` that is there, number or text.

Texts of digits are numbers where all labels are. `pipeline.sources.labelers.labels` makes classes of labels;
a dataset of ours takes them from its manifest.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import BinaryIO, NamedTuple

import msgspec

from pipeline.dataset.manifest import FILE_NAME, ClassInfo
from pipeline.dataset.tar import Member, scan
from pipeline.errors import ToolkitError, UsageError
from pipeline.sources.base import IMAGE_SUFFIXES, Container, Listing
from pipeline.sources.labelers.labels import Found, Label, Labeled, to_listing, wnid_in
from pipeline.sources.listers.hub import look_for, reading, split_of
from pipeline.sources.spool import unpacked
from pipeline.storage.base import ByteRange, Store

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_FIELDS = ("label", "cls", "class", "class_id", "target")
_LABELS = ("cls", "json")
# Members that the webdataset library leaves out, and hidden ones, such as macOS adds.
_SKIPPED = re.compile(r"__[^/]*__($|/)|(.*/)?\.")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_LONGEST_LABEL = 2**24
_FIRST_LOOK = 64
_ENDLESS = 2**62


class SamplePart(NamedTuple):
    """A member that counts.

    Attributes:
        key: of the sample.
        prefix: what its extension has before the last dot.
        kind: "image", "cls" or "json".
        member: where it lies.
        content: a label's bytes.
    """

    key: str
    prefix: str
    kind: str
    member: Member
    content: bytes = b""


TarSample = dict[str, SamplePart]
"""Kind → part."""


def detect(store: Store) -> bool:
    """Whether there are tars; beside folders with images, only such as hold labels count."""
    first, images = look_for(store, _is_tar)
    return first is not None and (not images or _begins_labeled(store, first))


def list_samples(store: Store) -> Listing:
    """List the samples of every tar.

    Raises:
        UsageError: a damaged tar; samples without an image; labels that are no labels, or see
            `pipeline.sources.labelers.labels.to_listing`.
        RunError: a tar cannot be read.
    """
    containers = tuple(Container(f.path, f.size) for f in store.walk()[0] if _is_tar(f.path))
    found: dict[str, list[Found]] = {}
    bare: list[str] = []
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
                bare.append(f"{store.url_of(container.path)}: {next(iter(sample.values())).member.name}")
    if bare:
        others = f", and {len(bare) - 1:,} more labels have none" if bare[1:] else ""
        raise UsageError(f"{bare[0]} has no image beside it{others}; add images or remove the labels")
    _unify(found)
    return to_listing(store, Labeled("webdataset", found, containers, classes=_own_classes(store)))


def _is_tar(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name.endswith(_SUFFIXES) and not name.startswith("ilsvrc2012_")  # ImageNet's own archives


def _begins_labeled(store: Store, path: str) -> bool:
    """Whether there is a labeled image among a tar's first members."""
    parts: list[SamplePart | None] = []
    # What is damaged further on, or has an end, has begun all the same.
    with suppress(ToolkitError), unpacked(store, Container(path, store.size(path))) as file:
        for member in islice(scan(file, store.url_of(path), end=_ENDLESS), _FIRST_LOOK):
            parts.append(_part(member))
    labeled = {part.key for part in parts if part and part.kind in _LABELS}
    return any(part and part.kind == "image" and part.key in labeled for part in parts)


def read_tar(store: Store, container: Container) -> Iterator[TarSample]:
    """The samples of a tar in order, with the bytes of their labels.

    Raises:
        UsageError: a damaged tar, or a label of 16 MiB or more.
    """
    place = store.url_of(container.path)
    key, group = "", dict[str, SamplePart]()
    with unpacked(store, container) as file:
        for member in scan(file, place):
            if (part := _part(member)) is None:
                continue
            extension = member.name[len(part.key) :].lower()
            if part.key != key or extension in group:
                yield from _samples(group)
                key, group = part.key, {}
            group[extension] = _with_content(part, file, place) if part.kind in _LABELS else part
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


def _with_content(part: SamplePart, file: BinaryIO, place: str) -> SamplePart:
    _, offset, size = part.member
    if size > _LONGEST_LABEL:
        raise UsageError(f"{place}: {part.member.name} has {size:,} bytes, too many for a label; remove it")
    file.seek(offset)
    return part._replace(content=file.read(size))


def _samples(group: dict[str, SamplePart]) -> Iterator[TarSample]:
    """The samples among the members of one key, by extension."""
    if not group:
        return
    by_prefix: dict[str, TarSample] = {}
    merged: TarSample = {}
    for part in group.values():
        by_prefix.setdefault(part.prefix, {}).setdefault(part.kind, part)
        merged.setdefault(part.kind, part)
    if _is_complete(by_prefix.get("", {})):
        yield by_prefix[""]  # the others go with it, such as KEY.mask.png
    elif any(map(_is_complete, by_prefix.values())):
        yield from by_prefix.values()
    else:
        yield merged


def _is_complete(sample: TarSample) -> bool:
    return "image" in sample and any(kind in sample for kind in _LABELS)


def _label_of(sample: TarSample, place: str) -> Label | None:
    part = sample.get("cls") or sample.get("json")
    if part is None:
        return None
    try:
        if part.kind == "cls":
            return part.content.decode().strip("\0 \t\r\n") or None
        fields = msgspec.json.decode(part.content)
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise UsageError(
            f"{place}: {part.member.name} is no label ({error}); correct or remove it"
        ) from error
    given = (fields.get(field) for field in LABEL_FIELDS) if isinstance(fields, dict) else ()
    label = next((value for value in given if value is not None), None)
    if label is not None and type(label) not in (int, str):
        raise UsageError(
            f"{place}: {part.member.name} has the label {label!r}; it must be a whole number or a text"
        )
    return label


def _unify(found: dict[str, list[Found]]) -> None:
    """Turn texts of digits into numbers where no label is another text; else share equal texts' memory."""
    texts = {f.label: f.label for rows in found.values() for f in rows if isinstance(f.label, str)}
    numbers = all(map(_NUMBER.fullmatch, texts))
    known: dict[str, Label] = {text: int(text) if numbers else text for text in texts}
    for rows in found.values():
        for f in rows:
            if isinstance(f.label, str):
                f.label = known[f.label]


class _Classes(msgspec.Struct):
    """What tells a manifest of ours from another file of that name."""

    classes: tuple[ClassInfo, ...]
    label_width: int


def _own_classes(store: Store) -> tuple[ClassInfo, ...] | None:
    """The classes of a dataset of ours, by label."""
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
