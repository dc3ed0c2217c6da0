"""Scoring predictions by labels other than the dataset's: ImageNet-ReaL, or a file of keys and labels."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from pipeline.errors import UsageError
from trainer.evaluation.metrics import Interval, wilson
from trainer.evaluation.predictions import Predictions

_IMAGENET_KEY = re.compile(r"ILSVRC2012_val_([0-9]{8})")
_IMAGENET_IMAGES = 50_000

Raw = int | str
T = TypeVar("T")


@dataclass(frozen=True)
class LabelSet:
    """Labels read from a file; an image may have several.

    Attributes:
        source: Path of the file.
        labels: Key of an image → its right class numbers, one or more.
        unlabeled: Number of images of the split without a label in the file; they are not scored.
        strangers: Number of keys in the file that are not in the split.
    """

    source: str
    labels: dict[str, frozenset[int]]
    unlabeled: int
    strangers: int = 0


@dataclass(frozen=True)
class LabelScore:
    """Accuracy of predictions by a label set.

    Attributes:
        source: Path of the file of labels.
        samples: Number of images scored: those with a label in the file.
        unlabeled: Number of images not scored because the file has no label for them.
        top1: Share of the scored images, 0..1, whose predicted class is among their labels.
        top5: Share of the scored images, 0..1, with a label among their five most probable classes.
        top1_interval, top5_interval: Wilson 95 % intervals of top1 and top5, 0..1.
    """

    source: str
    samples: int
    unlabeled: int
    top1: float
    top5: float
    top1_interval: Interval
    top5_interval: Interval


def score_labels(predictions: Predictions, labels: LabelSet) -> LabelScore:
    """Score predictions by a label set; images without a label are left out.

    Raises:
        UsageError: `labels` has a label for none of the images.
    """
    first = among = samples = 0
    for key, row in zip(predictions.keys, predictions.classes.tolist(), strict=True):
        right = labels.labels.get(key)
        if right:
            samples += 1
            first += row[0] in right
            among += not right.isdisjoint(row)
    if not samples:
        raise UsageError(
            f"{labels.source}: has a label for none of the {len(predictions):,} images; give labels of this "
            "split"
        )
    return LabelScore(
        source=labels.source,
        samples=samples,
        unlabeled=len(predictions) - samples,
        top1=first / samples,
        top5=among / samples,
        top1_interval=wilson(first, samples),
        top5_interval=wilson(among, samples),
    )


def read_real_labels(path: Path, keys: Sequence[str], classes: Sequence[str]) -> LabelSet:
    """Read `real.json` of "Are we done with ImageNet?" (Beyer et al. 2020), or a file of the same format.

    The file is a JSON list with one entry per validation image, in the order of the file names: the list of
    its right class numbers. An image with an empty list is left out. ImageNet keys are matched by the number
    in them, so that a subset of the validation set can be scored; other keys are matched in sorted order.

    Args:
        path: The JSON file.
        keys: Keys of the split's samples, in any order.
        classes: Class ids in label order.

    Raises:
        UsageError: the file cannot be read or has another format, another number of entries than there
            are images, a class number outside `classes`, or no label at all.
    """
    lists = _decode(path, list[list[int]], "a list with a list of class numbers for each image")
    numbers = [_IMAGENET_KEY.fullmatch(key) for key in keys]
    if all(numbers):
        positions = {key: int(match[1]) - 1 for key, match in zip(keys, numbers, strict=True) if match}
        expected, why = _IMAGENET_IMAGES, "ImageNet has {:,} validation images"
    else:
        positions = {key: position for position, key in enumerate(sorted(keys))}
        expected, why = len(keys), "the split has {:,} images"
    if len(lists) != expected:
        raise UsageError(
            f"{path}: holds labels for {len(lists):,} images, but {why.format(expected)}; give the whole "
            "file, in the order of the images' names"
        )
    rows = ((key, number) for key, position in positions.items() for number in lists[position])
    return _label_set(path, rows, keys, classes)


def read_labels(path: Path, keys: Sequence[str], classes: Sequence[str]) -> LabelSet:
    """Read labels by key from a CSV or JSON file.

    CSV has a header with the columns `key` and `label`; other columns are ignored, and repeated keys add
    labels. JSON is an object that maps each key to a label or a list of labels. A label is a class id of
    the dataset (such as a WNID) or a class number; the id wins where both fit. A key may be a file name:
    it is also tried without its suffix. An image with an empty label is left out.

    Args:
        path: File that ends in .csv or .json.
        keys: Keys of the split's samples, in any order.
        classes: Class ids in label order.

    Raises:
        UsageError: the file cannot be read or has another format, a label is no class of the dataset, or
            no key is in the split.
    """
    if path.suffix not in (".csv", ".json"):
        raise UsageError(f"{path}: labels are read from CSV or JSON; its name must end in .csv or .json")
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    return _label_set(path, rows, keys, classes)


def _label_set(
    path: Path, rows: Iterable[tuple[str, Raw]], keys: Sequence[str], classes: Sequence[str]
) -> LabelSet:
    wanted, numbers = set(keys), {class_id: number for number, class_id in enumerate(classes)}
    labels: dict[str, set[int]] = {}
    strangers = set()
    for name, given in rows:
        key = name if name in wanted else name.rpartition(".")[0]
        if key not in wanted:
            strangers.add(name)
        elif given != "":
            labels.setdefault(key, set()).add(_class_number(path, name, given, numbers))
    if not labels:
        other = f"; its keys, such as {min(strangers)!r}, are not like {min(keys)!r}" if strangers else ""
        raise UsageError(
            f"{path}: labels none of the split's {len(keys):,} images{other}; give labels of this split"
        )
    return LabelSet(
        source=str(path),
        labels={key: frozenset(found) for key, found in labels.items()},
        unlabeled=len(keys) - len(labels),
        strangers=len(strangers),
    )


def _class_number(path: Path, key: str, label: Raw, numbers: dict[str, int]) -> int:
    if isinstance(label, str) and label in numbers:
        return numbers[label]
    number = int(label) if re.fullmatch(r"[0-9]{1,9}", str(label)) else -1
    if not 0 <= number < len(numbers):
        raise UsageError(
            f"{path}: {key} has the label {label!r}, which is neither a class id of the data (such as "
            f"{next(iter(numbers))!r}) nor a number from 0 to {len(numbers) - 1}"
        )
    return number


def _csv_rows(path: Path) -> Iterable[tuple[str, Raw]]:
    rows = csv.DictReader(io.StringIO(_text(path)), strict=True)
    try:
        missing = {"key", "label"} - set(rows.fieldnames or ())
        if missing:
            raise UsageError(f"{path}: its first line has no column {min(missing)!r}; it needs key and label")
        for row in rows:
            if row["key"] is None or row["label"] is None:
                raise UsageError(f"{path}: line {rows.line_num:,} has fewer columns than the first")
            yield row["key"], row["label"].strip()
    except csv.Error as error:
        raise UsageError(f"{path}: line {rows.line_num:,} is not CSV ({error})") from error


def _json_rows(path: Path) -> Iterable[tuple[str, Raw]]:
    table = _decode(path, dict[str, Raw | list[Raw]], "an object of key and label, or list of labels")
    for key, given in table.items():
        for label in given if isinstance(given, list) else [given]:
            yield key, label


def _decode(path: Path, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(_text(path), type=kind)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: not {what} as JSON ({error})") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: no such file of labels ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start:,})") from error
