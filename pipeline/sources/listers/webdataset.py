"""Samples of WebDataset tars: images beside their labels, `KEY.jpg` with `KEY.cls` or `KEY.json`.

As in the webdataset library, a member's key is its folder and its name up to the first dot, and the rest is
its extension, in upper or lower case; consecutive members with the same key are one sample. Where names have
more dots (`a.1.jpg`, `a.1.cls`, `a.2.jpg`, ...), members whose names are equal up to the last dot are one
sample. The label is

- in `cls`: an integer or a string, in UTF-8; or
- in `json`: the first existing field of `label`, `cls`, `class`, `class_id` and `target`, of the same types.

Strings of digits become numbers if every label is digits. `pipeline.sources.labelers.labels` turns labels
into classes; a dataset that this toolkit wrote takes its classes from its manifest.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import BinaryIO, NamedTuple

import msgspec

from pipeline.dataset.tar import Member, scan
from pipeline.errors import UsageError
from pipeline.sources.base import IMAGE_SUFFIXES, Container, Image, Label
from pipeline.sources.labelers.labels import FractionError, read_numbers
from pipeline.sources.opening import unpacked
from pipeline.storage.base import Store

LABEL_FIELDS = ("label", "cls", "class", "class_id", "target")
"""Fields of a sample's JSON that can hold its label, in order of preference."""
LABELS = (".cls", ".json")
"""Suffixes of members that can hold a label, in lower case."""
# Members that the webdataset library leaves out, and hidden files, such as those that macOS adds.
_SKIPPED = re.compile(r"__[^/]*__($|/)|(.*/)?\.")
_LONGEST_LABEL = 2**24


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


def read_tar(store: Store, container: Container) -> Iterator[TarSample]:
    """Yield the samples of a tar in order, with the bytes of their labels; members must lie side by side.

    Raises:
        UsageError: A damaged tar, or a label larger than 16 MiB.
        RunError: The tar cannot be read.
    """
    url = store.url_of(container.path)
    with unpacked(store, container) as file:
        parts = (part_of(member) for member in scan(file, url))
        yield from samples_of(with_content(file, part, url) for part in parts if part)


def part_of(member: Member) -> SamplePart | None:
    """Return a member as part of a sample; None for members that are neither images nor labels."""
    folder, slash, name = member.name.rpartition("/")
    base, _, extension = name.partition(".")
    prefix, _, kind = extension.rpartition(".")
    kind = kind.lower()
    if f".{kind}" in IMAGE_SUFFIXES:
        kind = "image"
    elif f".{kind}" not in LABELS:
        return None
    return None if _SKIPPED.match(member.name) else SamplePart(f"{folder}{slash}{base}", prefix, kind, member)


def with_content(file: BinaryIO, part: SamplePart, url: str) -> SamplePart:
    """Return a label with its bytes; an image as it is.

    Raises:
        UsageError: The label is larger than 16 MiB.
    """
    if part.kind == "image":
        return part
    name, offset, size = part.member
    if size > _LONGEST_LABEL:
        raise UsageError(f"{url}: {name} has {size:,} bytes, too many for a label; remove it")
    file.seek(offset)
    return part._replace(content=file.read(size))


def samples_of(parts: Iterable[SamplePart]) -> Iterator[TarSample]:
    """Group the parts of a tar, in its order, into samples: consecutive parts with one key."""
    key, group = "", dict[str, SamplePart]()
    for part in parts:
        extension = part.member.name[len(part.key) :].lower()
        if part.key != key or extension in group:
            yield from _samples(group)
            key, group = part.key, {}
        group[extension] = part
    yield from _samples(group)


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


def label_of(sample: TarSample, url: str) -> Label | None:
    """Return a sample's label, or None if it has none.

    Raises:
        UsageError: The label is damaged, or neither an integer nor a string.
    """
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
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if label is not None and type(label) not in (int, str):
        raise UsageError(
            f"{url}: {part.member.name} has the label {label!r}; it must be a whole number or a string; "
            "correct or remove it"
        )
    return label


def unify(store: Store, labeled: dict[str, list[Image]]) -> None:
    """Turn string labels into numbers if all of them are numbers; else make equal strings one object.

    Args:
        store: The source.
        labeled: Tar → its images; their labels are replaced.

    Raises:
        UsageError: All labels are numbers, and some have a fraction.
    """
    images = list(chain.from_iterable(labeled.values()))
    texts = {image.label: image.label for image in images if isinstance(image.label, str)}
    try:
        known = read_numbers(texts)
    except FractionError as error:
        tar, image = next((tar, i) for tar, some in labeled.items() for i in some if i.label == str(error))
        raise UsageError(
            f"{store.url_of(tar)}: {image.path} has the label {error}; labels must be whole numbers or names"
        ) from error
    for image in images:
        if isinstance(image.label, str):
            image.label = known[image.label]
