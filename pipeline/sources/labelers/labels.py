"""From the labels that Parquet files and WebDataset tars give to classes.

A label is a number or a text. The class of a number is

- what the dataset's own manifest says, where it is one of ours; else
- the WNID that the names of its training images tell, where they do for every label; else
- its name in the ClassLabel that Hugging Face's metadata hold, with the number behind names given twice; else
- its digits, padded with zeros to one width.

A text is the class itself. Where every class is a WNID, they are ordered so, as everywhere else; otherwise
numbers keep their order, and texts are sorted.
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
    """An image with the label that its source gives it.

    Attributes:
        path, size, container, offset: as of `Entry`.
        label: None or a negative number where there is none, as in ImageNet's test split.
        wnid: the class that its name tells, or None.
    """

    path: str
    label: Label | None
    wnid: str | None
    size: int
    container: int
    offset: int


@dataclass
class Labeled:
    """Images of a source, and what it says of its labels.

    Attributes:
        layout: how it was read.
        found: split → images; emptied on the way.
        containers: that they refer to.
        names: the ClassLabel's names by number, or None.
        classes: the classes by number, of a dataset of ours, or None.
    """

    layout: str
    found: dict[str, list[Found]]
    containers: tuple[Container, ...]
    names: Sequence[str] | None = None
    classes: Sequence[ClassInfo] | None = None


def plain_name(name: str) -> str:
    """A file's name without the hub's `_WNID` behind its stem.

    The hub's ImageNet has `n01440764_10026_n01440764.JPEG` and `ILSVRC2012_val_00000293_n01440764.JPEG`.
    """
    return _BEHIND.sub("", name, count=1)


def wnid_in(name: str, split: str) -> str | None:
    """The WNID that a file's name tells: behind its stem, or before the first _ of a training image's."""
    match = _BEHIND.search(name) or (_IN_FRONT.match(name) if split == "train" else None)
    return match[1] if match else None


def to_listing(store: Store, labeled: Labeled) -> Listing:
    """Turn labels into classes.

    Names to show come from `LOC_synset_mapping.txt` in the source's root, else from the ClassLabel.

    Raises:
        UsageError: images without labels in a split that has some, or in "train"; numbers beside texts;
            a number beyond the names; names that contradict labels.
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
        place = store.url_of(labeled.containers[first.container].path)
        raise UsageError(
            f"{place}: {first.path} has no label; {len(without):,} of {len(found):,} {split} images have "
            "none: add labels or remove the images"
        )


def _is_missing(label: Label | None) -> bool:
    return label is None or label == "" or (isinstance(label, int) and label < 0)


def _distinct(store: Store, labeled: Labeled) -> Iterable[Label]:
    """Every label that occurs: all of them numbers, or all of them texts."""
    examples: dict[type, Found] = {}
    labels: set[Label] = set()
    for found in labeled.found.values():
        for f in found:
            if f.label not in labels:
                labels.add(f.label)  # type: ignore[arg-type]  # the missing are gone
                examples.setdefault(type(f.label), f)
    if len(examples) > 1:
        number, text = (examples[kind] for kind in (int, str))
        raise UsageError(
            f"source {store}: labels are numbers and texts: {number.label} of {number.path}, but "
            f"{text.label!r} of {text.path}; use one kind"
        )
    return labels


def _classes(store: Store, labeled: Labeled, labels: list[Label]) -> list[ClassInfo]:
    """The class of each label, in the order given."""
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
        f"source {store}: there is a label {label!r}, but names for the labels 0 to {len(table) - 1} only; "
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
    """The WNID of each number that images' names tell, or None where some have none."""
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
            f"source {store}: names contradict labels: {one.path} has label {one.label} and WNID {one.wnid}, "
            f"{two.path} label {two.label} and WNID {two.wnid}; correct the labels, or give classes as texts"
        )
    return [str(first[label].wnid) for label in labels]
