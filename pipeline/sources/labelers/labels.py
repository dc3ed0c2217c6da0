"""Turn the labels in Parquet files, WebDataset tars and tables into classes.

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
from itertools import chain
from typing import Any, TypeVar

from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError
from pipeline.sources.base import Image, Label
from pipeline.sources.classes import class_order, normal_form
from pipeline.sources.labelers.wnids import WNID, wnid_in

T = TypeVar("T")
# An integer, which some tools write as 7.0; and any other number.
_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(\.0*)?", re.ASCII)
_OTHER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|[+-]?inf", re.ASCII | re.IGNORECASE)


class FractionError(ValueError):
    """All labels are numbers, and the one that is the error's text is not whole."""


def read_numbers(texts: Iterable[str]) -> dict[str, Label]:
    """Return text → number if all labels are whole numbers, such as 7 and 7.0; else text → text.

    Raises:
        FractionError: All are numbers, and one is not whole.
    """
    found = {text: _WHOLE.fullmatch(text) for text in texts}
    whole = {text: int(match[1]) for text, match in found.items() if match}
    if len(whole) == len(found):
        return dict(whole)
    others = [text for text in found if text not in whole]
    if all(map(_OTHER.fullmatch, others)):
        raise FractionError(others[0])
    return {text: text for text in found}


def is_missing(label: Label | None) -> bool:
    """Whether a label stands for none: None, "" or a negative number, as in ImageNet's test split."""
    return label is None or label == "" or (isinstance(label, int) and label < 0)


def to_classes(
    place: str,
    images: dict[str, list[Image]],
    names: Sequence[str] | None = None,
    classes: Sequence[ClassInfo] | None = None,
) -> list[ClassInfo]:
    """Replace the labels of images by the ids of classes.

    Args:
        place: Path or URL of the source, for messages.
        images: Split → images with their labels; all have one.
        names: Class names by label, from Hugging Face's ClassLabel, or None.
        classes: Classes by label, from the manifest of a dataset that this toolkit wrote, or None.

    Returns:
        The classes that occur, in label order.

    Raises:
        UsageError: Both integers and strings as labels; a label without a name in the ClassLabel or manifest;
            file names that contradict labels.
    """
    _normalize(images)
    labels = _distinct(place, images)
    if classes is not None:
        infos = [_named(place, classes, label) for label in labels]
    else:
        infos = _classes(place, images, labels, names)
    id_of = {label: info.id for label, info in zip(labels, infos, strict=True)}
    for image in chain.from_iterable(images.values()):
        image.label = id_of[image.label]  # type: ignore[index]  # the caller leaves no image without
    if all(WNID.fullmatch(info.id) for info in infos):
        infos.sort(key=lambda info: info.id)
    return infos


def _normalize(images: dict[str, list[Image]]) -> None:
    """Give labels that are strings their NFC form, as class folders have it."""
    labels = {image.label for image in chain.from_iterable(images.values())}
    forms: dict[Label | None, Label] = {
        label: normal_form(label) for label in labels if isinstance(label, str)
    }
    if any(label != form for label, form in forms.items()):
        for image in chain.from_iterable(images.values()):
            image.label = forms.get(image.label, image.label)


def _distinct(place: str, images: dict[str, list[Image]]) -> list[Label]:
    """Return the distinct labels, sorted; raise UsageError if some are integers and others strings."""
    first: dict[Any, Image] = {}
    for image in chain.from_iterable(images.values()):
        first.setdefault(image.label, image)
    examples = {type(label): image for label, image in reversed(first.items())}
    if len(examples) > 1:
        number, text = examples[int], examples[str]
        raise UsageError(
            f"source {place}: some labels are numbers and others strings: {number.label} of {number.path}, "
            f"but {text.label!r} of {text.path}; use one kind"
        )
    return list(class_order(first)) if examples.keys() == {str} else sorted(first)


def _classes(
    place: str, images: dict[str, list[Image]], labels: list[Label], names: Sequence[str] | None
) -> list[ClassInfo]:
    """Return the class of each label, in the order of `labels`."""
    given: list[str] | None = None
    if names is not None and not any(isinstance(label, str) for label in labels):
        given = [_named(place, names, label) for label in labels]
    ids = _wnids(place, images, labels) or _ids(labels, given)
    return [ClassInfo(class_id, name) for class_id, name in zip(ids, given or ids, strict=True)]


def _named(place: str, table: Sequence[T], label: Label) -> T:
    if isinstance(label, int) and label < len(table):
        return table[label]
    raise UsageError(
        f"source {place}: label {label!r} occurs, but only the labels 0 to {len(table) - 1} have names; "
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


def _wnids(place: str, images: dict[str, list[Image]], labels: list[Label]) -> list[str] | None:
    """Return the WNID of each label from the images' file names, or None if a label has none there."""
    if any(isinstance(label, str) for label in labels):
        return None
    first: dict[Label | None, tuple[str, Image]] = {}
    contradictions: list[tuple[Image, Image]] = []
    for image in chain.from_iterable(images.values()):
        wnid = wnid_in(image.path.rpartition("/")[2])
        if wnid and (known := first.setdefault(image.label, (wnid, image)))[0] != wnid:
            contradictions.append((known[1], image))
    if any(label not in first for label in labels):
        return None
    by_wnid: dict[str, Image] = {}
    for wnid, image in first.values():
        if (other := by_wnid.setdefault(wnid, image)) is not image:
            contradictions.append((other, image))
    if contradictions:
        one, two = contradictions[0]
        wnids = [wnid_in(image.path.rpartition("/")[2]) for image in (one, two)]
        raise UsageError(
            f"source {place}: file names contradict labels: {one.path} has label {one.label} and WNID "
            f"{wnids[0]}, {two.path} label {two.label} and WNID {wnids[1]}; correct the labels, or use class "
            "names as labels"
        )
    return [first[label][0] for label in labels]
