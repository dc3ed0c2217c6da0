"""Pictures beside what the net says of them and beside their nearest neighbours: the paper's figure 4.

Shapes: S crop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.samples import StoredPicture, find_places, read_stored
from pipeline.errors import UsageError
from trainer.inference.features import features, split_features, this_machine
from trainer.inference.neighbors import nearest
from trainer.inference.preprocess import Crop, as_batch, crop_of_file, crop_of_stored
from trainer.models.classifier import Classifier, Spec

UNKNOWN = -1
_BATCH = 32
_LISTED = 5


@dataclass(frozen=True)
class Picture:
    """A picture as the net is shown it.

    Attributes:
        name: its key in the dataset, or its file's name.
        crop: uint8 (S, S, 3) RGB, the centre.
        label: class number, or `UNKNOWN`.
    """

    name: str
    crop: Crop
    label: int


@dataclass(frozen=True)
class Prediction:
    """A picture, and the five likeliest classes, likeliest first, with their probabilities."""

    picture: Picture
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Whether the likeliest class is the label."""
        return self.classes[0] == self.picture.label


@dataclass(frozen=True)
class Neighbourhood:
    """A picture, and the nearest pictures of another split with their distances, nearest first."""

    query: Picture
    found: tuple[Picture, ...]
    distances: tuple[float, ...]


def named_pictures(
    names: Sequence[str], spec: Spec, dataset: Dataset | None, split: str = "val"
) -> list[Picture]:
    """Read pictures by file names or by keys of a split; a name that is a file's is taken for that.

    Args:
        names: files or keys.
        spec: what the net takes.
        dataset: where keys are looked up, or None where there is none.
        split: of the keys.

    Raises:
        UsageError: neither a file nor a key, or not a picture.
    """
    keys = [name for name in names if not Path(name).is_file()]
    if keys and dataset is None:
        raise UsageError(f"{keys[0]}: no such file, and no dataset is known that could hold it as a key")
    stored = read_stored(dataset, split, find_places(dataset, split, keys)) if dataset and keys else []
    by_key = {key: of_stored(picture, spec) for key, picture in zip(keys, stored, strict=True)}
    return [
        by_key.get(name) or Picture(Path(name).name, crop_of_file(Path(name), spec), UNKNOWN)
        for name in names
    ]


def some_pictures(dataset: Dataset, split: str, spec: Spec, count: int, seed: int) -> list[Picture]:
    """Draw `count` pictures of a split at random, fewer where it holds fewer.

    Raises:
        UsageError: no such split, or a picture that does not decode.
    """
    places = _shuffled(dataset, split, seed)[:count]
    return [of_stored(stored, spec) for stored in read_stored(dataset, split, places)]


def of_stored(stored: StoredPicture, spec: Spec) -> Picture:
    """A stored picture as the net is shown it."""
    return Picture(stored.key, crop_of_stored(stored.data, spec), stored.label)


def predict(classifier: Classifier, pictures: Sequence[Picture]) -> list[Prediction]:
    """Classify pictures; of equally likely classes the lower number comes first."""
    found: list[Prediction] = []
    for start in range(0, len(pictures), _BATCH):
        batch = pictures[start : start + _BATCH]
        pixels = as_batch([picture.crop for picture in batch]).to(classifier.mean.device)
        with torch.inference_mode():
            probabilities = classifier.classify(pixels).double().softmax(dim=1).cpu().numpy()
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :_LISTED]
        for picture, classes, row in zip(batch, order, probabilities, strict=True):
            likeliest = tuple(int(label) for label in classes)
            found.append(Prediction(picture, likeliest, tuple(float(row[label]) for label in classes)))
    return found


def some_predictions(
    classifier: Classifier, dataset: Dataset, split: str, count: int, seed: int, only_errors: bool = False
) -> list[Prediction]:
    """Classify pictures of a split in random order until `count` are found, or all have been seen.

    Args:
        classifier: in evaluation mode.
        dataset: of the classifier's classes.
        split: usually "val".
        count: pictures wanted; fewer come where there are no more.
        seed: of the order.
        only_errors: keep those alone whose likeliest class is not the label.
    """
    order = _shuffled(dataset, split, seed)
    found: list[Prediction] = []
    step = max(_BATCH, count) if only_errors else count
    for start in range(0, len(order), step):
        stored = read_stored(dataset, split, order[start : start + step])
        predictions = predict(classifier, [of_stored(one, classifier.spec) for one in stored])
        found += [one for one in predictions if not (only_errors and one.right)]
        if len(found) >= count:
            break
    return found[:count]


def find_neighbours(
    classifier: Classifier,
    queries: Sequence[Picture],
    dataset: Dataset,
    split: str = "train",
    count: int = 6,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Neighbourhood]:
    """Search a whole split for the pictures whose features are nearest to the queries'.

    Features are the last hidden layer's behind its ReLU, distances Euclidean, the search exact: see
    `trainer.inference.neighbors.nearest`. One batch's features are held at a time.

    Args:
        classifier: in evaluation mode.
        queries: pictures; one that is in the split itself finds itself first.
        dataset: the dataset that is searched.
        split: usually "train".
        count: neighbours of each.
        batch_size: pictures per step.
        progress: called with the pictures searched and all of them.

    Raises:
        UsageError: no such split.
        RunError: a sample could not be read, or the net gives no numbers.
    """
    device = this_machine().device
    classifier.to(device)  # before the queries' features: those of another device differ in rounding
    crops = as_batch([query.crop for query in queries]).to(device)
    parts = (crops[start : start + batch_size] for start in range(0, len(crops), batch_size))
    wanted = np.concatenate([features(classifier, part) for part in parts])
    near = nearest(wanted, split_features(classifier, dataset, split, batch_size, progress), count)
    places = sorted(set(chain.from_iterable(near.indices.tolist())))
    pictures = dict(
        zip(places, (of_stored(s, classifier.spec) for s in read_stored(dataset, split, places)), strict=True)
    )
    return [
        Neighbourhood(query, tuple(pictures[place] for place in row), tuple(distances))
        for query, row, distances in zip(queries, near.indices.tolist(), near.distances.tolist(), strict=True)
    ]


def _shuffled(dataset: Dataset, split: str, seed: int) -> list[int]:
    return [int(place) for place in np.random.default_rng(seed).permutation(dataset.samples(split))]
