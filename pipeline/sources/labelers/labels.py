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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

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


@dataclass
class Labeled:
    """Images of a source with their labels, and the names of these labels.

    Attributes:
        layout: Name of the layout, as in `--layout`.
        found: Split → images; `to_listing` empties it.
        containers: Containers that the images refer to.
        names: Class names by label, from Hugging Face's ClassLabel, or None.
        classes: Classes by label, from the manifest of a dataset that this toolkit wrote, or None.
    """

    layout: str
    found: dict[str, list[Found]]
    containers: tuple[Container, ...]
    names: Sequence[str] | None = None
    classes: Sequence[ClassInfo] | None = None


def plain_name(name: str) -> str:
    """Return a file name without the `_WNID` that the Hugging Face hub appends to the stem.

    The hub's ImageNet has `n01440764_10026_n01440764.JPEG` and `ILSVRC2012_val_00000293_n01440764.JPEG`.
    """
    return _BEHIND.sub("", name, count=1)


def wnid_in(name: str, split: str) -> str | None:
    """Return the WNID in a file name: at the end of its stem, or before the first _ of a training image."""
    match = _BEHIND.search(name) or (_IN_FRONT.match(name) if split == "train" else None)
    return match[1] if match else None


def to_listing(store: Store, labeled: Labeled) -> Listing:
    """Turn labels into classes; `labeled.found` is emptied.

    Names to show come from `LOC_synset_mapping.txt` in the source's root, else from the ClassLabel. A split
    other than "train" without any labels is left out.

    Raises:
        UsageError: Unlabeled images in "train" or in a split that has labels; both integers and strings as
            labels; a label without a name in the ClassLabel or manifest; file names that contradict labels.
    """
    notes: list[str] = []
    _leave_unlabeled_out(store, labeled, notes)
    labels = sorted(_distinct(store, labeled))
    classes = _classes(store, labeled, labels)
    ids = [info.id for info in classes]
    id_of = dict(zip(labels, ids, strict=True))
    entries: dict[str, list[Entry]] = {}
    for split in list(labeled.found):
        entries[split] = [
            Entry(f.path, id_of[f.label], f.size, f.container, f.offset)  # type: ignore[index]
            for f in labeled.found.pop(split)
        ]
    return Listing(
        labeled.layout,
        entries,
        labeled.containers,
        {info.id: info.name for info in classes},
        tuple(sorted(ids) if all(map(WNID.fullmatch, ids)) else ids),
        notes,
    )


def _leave_unlabeled_out(store: Store, labeled: Labeled, notes: list[str]) -> None:
    for split, found in list(labeled.found.items()):
        without = [f for f in found if _is_missing(f.label)]
        if not without:
            continue
        if len(without) == len(found) and split != "train":
            notes.append(f"{split}: its {len(found):,} images have no labels, left out")
            del labeled.found[split]
            continue
        first = without[0]
        url = store.url_of(labeled.containers[first.container].path)
        raise UsageError(
            f"{url}: {first.path} has no label; {len(without):,} of {len(found):,} {split} images have "
            "none: add labels or remove the images"
        )


def _is_missing(label: Label | None) -> bool:
    return label is None or label == "" or (isinstance(label, int) and label < 0)


def _distinct(store: Store, labeled: Labeled) -> Iterable[Label]:
    """Return the distinct labels; raise UsageError if some are integers and others strings."""
    examples: dict[type, Found] = {}
    labels: set[Label] = set()
    for found in labeled.found.values():
        for f in found:
            if f.label not in labels:
                labels.add(f.label)  # type: ignore[arg-type]  # unlabeled images were left out before
                examples.setdefault(type(f.label), f)
    if len(examples) > 1:
        number, text = (examples[kind] for kind in (int, str))
        raise UsageError(
            f"source {store}: some labels are numbers and others strings: {number.label} of {number.path}, "
            f"but {text.label!r} of {text.path}; use one kind"
        )
    return labels


def _classes(store: Store, labeled: Labeled, labels: list[Label]) -> list[ClassInfo]:
    """Return the class of each label, in the order of `labels`."""
    if labeled.classes is not None:
        return [_named(store, labeled.classes, label) for label in labels]
    given: list[str] | None = None
    if labeled.names is not None and not any(isinstance(label, str) for label in labels):
        given = [_named(store, labeled.names, label) for label in labels]
    ids = _wnids(store, labeled, labels) or _ids(labels, given)
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


def _wnids(store: Store, labeled: Labeled, labels: list[Label]) -> list[str] | None:
    """Return the WNID of each label from the images' file names, or None if a label has none there."""
    first: dict[Label | None, Found] = {}
    contradictions: list[tuple[Found, Found]] = []
    for found in labeled.found.values():
        for f in found:
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
