"""Turn the labels in Parquet files and WebDataset tars into classes.

A label is an integer or a string. The class of an integer is the first of these that is known:

- the class in the dataset's manifest, if this toolkit wrote the dataset;
- the WNID in the images' file names, if there is one for every label;
- its name in the ClassLabel of Hugging Face's metadata, with the number behind names that occur twice;
- its digits, padded with zeros to one width.

A string is the class itself. If every class is a WNID, classes are sorted by WNID, as in all layouts;
otherwise integers keep their order and strings are sorted.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import msgspec

from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError
from pipeline.sources.base import Container, Entry, Listing
from pipeline.sources.labelers.devkit import WNID
from pipeline.sources.labelers.imagenet import MAPPING, read_mapping
from pipeline.storage.base import Store

_BEHIND = re.compile(r"_(n[0-9]{8})(?=\.[^.]*$|$)")
_IN_FRONT = re.compile(r"(n[0-9]{8})_")

Label = int | str
T = TypeVar("T")


class Found(msgspec.Struct, gc=False):
    """An image with its label in the source.

    Attributes:
        path, size, container, offset: See `Entry`.
        label: Label in the source; None, "" or a negative number for an unlabeled image, as in ImageNet's
            test split.
        wnid: WNID in the image's file name, or None.
    """

    path: str
    label: Label | None
    wnid: str | None
    size: int
    container: int
    offset: int


def plain_name(name: str) -> str:
    """Return a file name without the `_WNID` that the Hugging Face hub appends to the stem.

    The hub's ImageNet has `n01440764_10026_n01440764.JPEG` and `ILSVRC2012_val_00000293_n01440764.JPEG`.
    """
    return _BEHIND.sub("", name, count=1)


def wnid_in(name: str, split: str) -> str | None:
    """Return the WNID in a file name: at the end of its stem, or before the first _ of a training image."""
    match = _BEHIND.search(name) or (_IN_FRONT.match(name) if split == "train" else None)
    return match[1] if match else None


def to_listing(
    store: Store,
    layout: str,
    found: dict[str, list[Found]],
    containers: tuple[Container, ...],
    names: Sequence[str] | None = None,
    classes: Sequence[ClassInfo] | None = None,
) -> Listing:
    """Turn labels into classes.

    Names to show come from `LOC_synset_mapping.txt` in the source's root, else from the ClassLabel. A split
    other than "train" without any labels is left out.

    Args:
        store: The source.
        layout: Name of the layout, as in `--layout`.
        found: Split → images with their labels. It is emptied.
        containers: Containers that the images refer to.
        names: Class names by label, from Hugging Face's ClassLabel, or None.
        classes: Classes by label, from the manifest of a dataset that this toolkit wrote, or None.

    Raises:
        UsageError: Unlabeled images in "train" or in a split that has labels; both integers and strings as
            labels; a label without a name in the ClassLabel or manifest; file names that contradict labels.
    """
    notes: list[str] = []
    for split, images in list(found.items()):
        without = [f for f in images if _is_missing(f.label)]
        if without and (split == "train" or len(without) < len(images)):
            url = store.url_of(containers[without[0].container].path)
            raise UsageError(
                f"{url}: {without[0].path} has no label; {len(without):,} of {len(images):,} {split} images "
                "have none: add labels or remove the images"
            )
        if without:
            notes.append(f"{split}: its {len(images):,} images have no labels, left out")
            del found[split]
    labels = _distinct(store, found)
    if classes is not None:
        infos = [_named(store, classes, label) for label in labels]
    else:
        infos = _classes(store, found, labels, names)
    ids = [info.id for info in infos]
    id_of: dict[Label | None, str] = dict(zip(labels, ids, strict=True))
    entries: dict[str, list[Entry]] = {}
    for split in list(found):
        entries[split] = [
            Entry(f.path, id_of[f.label], f.size, f.container, f.offset) for f in found.pop(split)
        ]
    shown = {info.id: info.name for info in infos}
    order = tuple(sorted(ids) if all(map(WNID.fullmatch, ids)) else ids)
    return Listing(layout, entries, containers, shown, order, notes)


def _is_missing(label: Label | None) -> bool:
    return label is None or label == "" or (isinstance(label, int) and label < 0)


def _distinct(store: Store, found: dict[str, list[Found]]) -> list[Label]:
    """Return the distinct labels, sorted; raise UsageError if some are integers and others strings."""
    first: dict[Any, Found] = {}
    for f in chain.from_iterable(found.values()):
        first.setdefault(f.label, f)
    examples = {type(label): f for label, f in reversed(first.items())}
    if len(examples) > 1:
        number, text = examples[int], examples[str]
        raise UsageError(
            f"source {store}: some labels are numbers and others strings: {number.label} of {number.path}, "
            f"but {text.label!r} of {text.path}; use one kind"
        )
    return sorted(first)


def _classes(
    store: Store, found: dict[str, list[Found]], labels: list[Label], names: Sequence[str] | None
) -> list[ClassInfo]:
    """Return the class of each label, in the order of `labels`."""
    given: list[str] | None = None
    if names is not None and not any(isinstance(label, str) for label in labels):
        given = [_named(store, names, label) for label in labels]
    ids = _wnids(store, found, labels) or _ids(labels, given)
    shown = read_mapping(store, MAPPING) if store.is_file(MAPPING) else {}
    return [
        ClassInfo(class_id, shown.get(class_id) or name)
        for class_id, name in zip(ids, given or ids, strict=True)
    ]


def _named(store: Store, table: Sequence[T], label: Label) -> T:
    if isinstance(label, int) and label < len(table):
        return table[label]
    raise UsageError(
        f"source {store}: label {label!r} occurs, but only the labels 0 to {len(table) - 1} have names; "
        "correct the labels or the names"
    )


def _ids(labels: list[Label], given: list[str] | None) -> list[str]:
    if given is not None:
        times = Counter(given)
        return [
            name if times[name] == 1 else f"{name} {label}" for name, label in zip(given, labels, strict=True)
        ]
    width = max((len(str(label)) for label in labels), default=1)
    return [label if isinstance(label, str) else f"{label:0{width}d}" for label in labels]


def _wnids(store: Store, found: dict[str, list[Found]], labels: list[Label]) -> list[str] | None:
    """Return the WNID of each label from the images' file names, or None if a label has none there."""
    first: dict[Label | None, Found] = {}
    contradictions: list[tuple[Found, Found]] = []
    for f in chain.from_iterable(found.values()):
        if f.wnid and first.setdefault(f.label, f).wnid != f.wnid:
            contradictions.append((first[f.label], f))
    if any(isinstance(label, str) or label not in first for label in labels):
        return None
    by_wnid: dict[str | None, Found] = {}
    for f in first.values():
        if (other := by_wnid.setdefault(f.wnid, f)) is not f:
            contradictions.append((other, f))
    if contradictions:
        one, two = contradictions[0]
        raise UsageError(
            f"source {store}: file names contradict labels: {one.path} has label {one.label} and WNID "
            f"{one.wnid}, {two.path} label {two.label} and WNID {two.wnid}; correct the labels, or use class "
            "names as labels"
        )
    return [str(first[label].wnid) for label in labels]
