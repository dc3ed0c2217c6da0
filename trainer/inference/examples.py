"""Single images as the network sees them, by name or at random, and their predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arguments import COUNT, checked
from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from trainer.evaluation.probabilities import KEPT, mean_probabilities, topk_stable
from trainer.inference.preprocess import Crops, as_batch, crop_of_stored, crops_of_file
from trainer.models.classifier import Classifier, Spec
from trainer.precision import PrecisionName

UNKNOWN = -1
"""Label of an image whose class is not known."""
_BATCH = 32


@dataclass(frozen=True)
class NamedImage:
    """An image's center crop, the network's input, with its name and label.

    Attributes:
        name: Key of the image in the dataset, or its file name.
        crop: uint8 (S, S, 3) RGB, center crop.
        label: Class number, or `UNKNOWN`.
    """

    name: str
    crop: Crops
    label: int


@dataclass(frozen=True)
class Prediction:
    """The top-5 prediction of an image.

    Attributes:
        image: The image.
        classes: Class numbers, most probable first; five, or fewer if the network has fewer classes.
        probabilities: Probabilities of `classes`, 0..1.
    """

    image: NamedImage
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Whether the most probable class is the label."""
        return self.classes[0] == self.image.label


def named_images(
    names: Sequence[str], spec: Spec, dataset: Dataset | None, split: str = "val"
) -> list[NamedImage]:
    """Read images by path or by key; a name is a key only if there is no such file.

    Args:
        names: Paths of image files, or keys of `split`.
        spec: Image size and crop of the network.
        dataset: Dataset in which keys are looked up, or None to allow files only.
        split: Name of the split that the keys belong to.

    Returns:
        Images in the order of `names`; those from files have the label `UNKNOWN`.

    Raises:
        UsageError: a name is neither a file nor a key, or an image cannot be read.
    """
    keys = [name for name in names if not Path(name).is_file()]
    if keys and dataset is None:
        raise UsageError(f"{keys[0]}: no such file, and no dataset is known that could hold it as a key")
    places = dataset.samples(split).positions(keys) if dataset and keys else []
    by_key = dict(zip(keys, stored_images(dataset, split, places, spec), strict=True)) if dataset else {}
    return [
        by_key.get(name) or NamedImage(Path(name).name, crops_of_file(Path(name), spec), UNKNOWN)
        for name in names
    ]


def some_images(dataset: Dataset, split: str, spec: Spec, count: int, seed: int) -> list[NamedImage]:
    """Read random images of a split, without repetition.

    Args:
        dataset: The dataset, opened.
        split: Name of the split.
        spec: Image size and crop of the network.
        count: Number of images; fewer are returned if the split is smaller.
        seed: Seed of the random choice.

    Raises:
        UsageError: there is no such split, or an image does not decode.
    """
    return stored_images(dataset, split, _shuffled(dataset, split, seed)[:count], spec)


def stored_images(dataset: Dataset, split: str, positions: Sequence[int], spec: Spec) -> list[NamedImage]:
    """Read images of a split by position, decode them and cut their center crops.

    Raises:
        UsageError: there is no such split or position, or an image does not decode.
    """
    stored = dataset.samples(split).stored(positions)
    return [
        NamedImage(image.key, crop_of_stored(image.data, spec.crop, dataset.image), image.label)
        for image in stored
    ]


def predict(
    classifier: Classifier, images: Sequence[NamedImage], precision: PrecisionName = "float32"
) -> list[Prediction]:
    """Predict the five most probable classes of images; ties go to the lower class number.

    Args:
        classifier: Network in evaluation mode, on any device.
        images: Images, in batches of 32.
        precision: Precision of the forward pass.
    """
    found: list[Prediction] = []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        pixels = as_batch([image.crop for image in batch]).to(classifier.mean.device)
        values, classes = topk_stable(mean_probabilities([classifier], pixels, precision=precision), KEPT)
        for image, numbers, row in zip(batch, classes.tolist(), values.tolist(), strict=True):
            found.append(Prediction(image, tuple(numbers), tuple(row)))
    return found


@checked(count=COUNT, seed=(0, math.inf))
def some_predictions(
    classifier: Classifier,
    dataset: Dataset,
    split: str,
    count: int,
    seed: int,
    only_errors: bool = False,
    precision: PrecisionName = "float32",
) -> list[Prediction]:
    """Predict random images of a split until there are `count` predictions or the split ends.

    Args:
        classifier: Network in evaluation mode.
        dataset: Dataset with the network's classes.
        split: Name of the split, usually "val".
        count: Number of predictions; fewer are returned if the split has fewer.
        seed: Seed of the random order.
        only_errors: Whether to keep only images whose most probable class is not their label.
        precision: Precision of the forward pass.

    Raises:
        UsageError: there is no such split, or an image does not decode.
    """
    order = _shuffled(dataset, split, seed)
    found: list[Prediction] = []
    step = max(_BATCH, count) if only_errors else count
    for start in range(0, len(order), step):
        images = stored_images(dataset, split, order[start : start + step], classifier.spec)
        found += [one for one in predict(classifier, images, precision) if not (only_errors and one.right)]
        if len(found) >= count:
            break
    return found[:count]


def _shuffled(dataset: Dataset, split: str, seed: int) -> list[int]:
    """Return all positions of a split in random order, for `Samples.stored`."""
    positions: list[int] = np.random.default_rng(seed).permutation(len(dataset.samples(split))).tolist()
    return positions
