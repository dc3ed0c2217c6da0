"""Exact nearest neighbors of a few vectors among many that are never held at once.

Shapes: Q queries, N rows, D numbers of a vector, k neighbors wanted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.samples import StoredImage, find_places, read_stored
from pipeline.errors import RunError, UsageError
from trainer.inference.features import features, split_features, this_machine
from trainer.inference.preprocess import Crop, as_batch, crop_of_file, crop_of_stored
from trainer.models.classifier import Classifier, Spec

Vectors = NDArray[np.float32]

# Rows compared at once. 2,048 rows of 4,096 numbers are 32 MB: large enough for the matrix product to run
# at full speed, and what bounds the memory where a caller hands over a whole memory-mapped file.
_BLOCK_ROWS = 2048
# Bytes of float64 differences at once while candidates are ranked exactly.
_RANKING_BYTES = 16 << 20
_FLOAT32_ROUNDING = 2.0**-24
_FLOAT32_SMALLEST = 2.0**-126


@dataclass(frozen=True)
class Neighbors:
    """The nearest rows of each query, nearest first.

    Attributes:
        indices: int64 (Q, min(k, N)), rows counted from 0 in the order in which they were given.
        distances: float64 (Q, min(k, N)), Euclidean.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float64]


def nearest(queries: Vectors, chunks: Iterable[Vectors], count: int) -> Neighbors:
    """Find the `count` nearest rows of each query by Euclidean distance, exactly.

    Rows are ranked by Σ(a − b)² in float64; equal sums are ranked by the lower index. Most rows never get
    that far. With κ from `rounding_bound`, float32's ‖b‖²(1 − κ) − 2a·b + ‖a‖²(1 − κ) is no more than the
    true squared distance, whatever the order of summation, so that a row for which this exceeds the
    distance of the k-th found so far cannot be among the nearest. The others, some k of a block, are ranked
    by their differences. Near-duplicates, which float32's expansion cannot tell apart, are therefore in
    their true order.

    Memory: the queries, one chunk, and some 60 MB; a chunk may be a memory-mapped array of any length.

    Args:
        queries: float32 (Q, D).
        chunks: arrays (n, D), n may differ; other types than float32 are converted to it.
        count: neighbors wanted, 1 or more.

    Raises:
        UsageError: no rows, rows of another length than the queries', or a count below 1.
        RunError: a vector that is not of finite numbers.
    """
    search = _Search(_in_rows(np.atleast_2d(queries)), count)
    for chunk in chunks:
        if chunk.ndim != 2 or chunk.shape[1] != search.queries.shape[1]:
            raise UsageError(
                f"vectors of shape {chunk.shape} among rows of {search.queries.shape[1]} numbers; compare "
                "features of one layer of one network"
            )
        for block in _blocks(chunk):
            search.add(_in_rows(block))
    return search.result()


def rounding_bound(length: int) -> float:
    """κ: the relative error of ‖b‖² − 2a·b in float32, against ‖a‖² + ‖b‖².

    A sum of `length` products in float32, in any order, fused or not, errs by at most γ · Σ|aᵢbᵢ| with
    γ = nu / (1 − nu), n = `length` and u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.1); Σ|aᵢbᵢ| ≤ (‖a‖² + ‖b‖²) / 2. The product is doubled, ‖b‖² errs by γ‖b‖², and a few more
    roundings join them: 2γ of `length` + 16 numbers covers all.
    """
    nu = (length + 16) * _FLOAT32_ROUNDING
    return 2 * nu / (1 - nu)


class _Search:
    """The best rows so far, and how many rows have been seen."""

    def __init__(self, queries: Vectors, count: int) -> None:
        if count < 1:
            raise UsageError(f"{count} neighbors were asked for; ask for at least 1")
        if not len(queries):
            raise UsageError("there is no vector to find neighbors of")
        _refuse_not_finite(queries, "a query")
        self.queries = queries
        self._count, self._seen = count, 0
        self._exact = queries.astype(np.float64)
        self._bound = rounding_bound(queries.shape[1])
        # What products lost where they were smaller than float32's smallest normal number.
        self._underflow = 4 * queries.shape[1] * _FLOAT32_SMALLEST
        self._squares = (self._exact**2).sum(axis=1)
        self._distances = np.full((len(queries), count), np.inf)  # squared
        self._indices = np.full((len(queries), count), -1, np.int64)

    def add(self, rows: Vectors) -> None:
        lower = self._lower_bounds(rows)
        for query in np.flatnonzero((lower <= self._distances[:, -1:]).any(axis=1)):
            self._add_to(query, rows, lower[query])
        self._seen += len(rows)

    def result(self) -> Neighbors:
        if not self._seen:
            raise UsageError("there are no vectors to search")
        found = min(self._count, self._seen)
        return Neighbors(self._indices[:, :found], np.sqrt(self._distances[:, :found]))

    def _lower_bounds(self, rows: Vectors) -> NDArray[np.float64]:
        """No more than the squared distances, float64 (Q, rows)."""
        with np.errstate(over="ignore", invalid="ignore"):
            products = (rows @ self.queries.T).T  # this way round BLAS is some times faster on few queries
            squares = np.einsum("nd,nd->n", rows, rows)
            lower: NDArray[np.float64] = squares.astype(np.float64) * (1 - self._bound) - 2.0 * products
        lower += (self._squares * (1 - self._bound) - self._underflow)[:, None]
        if np.isfinite(squares).all() and np.isfinite(lower).all():
            return lower
        _refuse_not_finite(rows, "a row")
        # An overflow says nothing about a row: it has to be ranked.
        lower[~np.isfinite(lower)] = -np.inf
        return lower

    def _add_to(self, query: np.intp, rows: Vectors, lower: NDArray[np.float64]) -> None:
        """Rank a block's candidates, likeliest first, until what is left can only be farther."""
        candidates = np.flatnonzero(lower <= self._distances[query, -1])
        candidates = candidates[np.argsort(lower[candidates], kind="stable")]
        step = max(self._count, _RANKING_BYTES // (8 * rows.shape[1]))
        start = 0
        size = self._count  # as few as can fill the list; they leave little for the next step
        while start < len(candidates):
            chosen = candidates[start : start + size]
            if lower[chosen[0]] > self._distances[query, -1]:
                return
            self._rank(query, rows, chosen)
            start, size = start + size, step

    def _rank(self, query: np.intp, rows: Vectors, chosen: NDArray[np.intp]) -> None:
        differences = rows[chosen].astype(np.float64)
        differences -= self._exact[query]
        differences *= differences
        # Row by row along memory, so that equal rows get equal sums.
        distances = np.concatenate([self._distances[query], differences.sum(axis=1)])
        indices = np.concatenate([self._indices[query], self._seen + chosen])
        best = np.lexsort((indices, distances))[: self._count]
        self._distances[query], self._indices[query] = distances[best], indices[best]


def _blocks(chunk: Vectors) -> Iterator[Vectors]:
    for start in range(0, len(chunk), _BLOCK_ROWS):
        yield chunk[start : start + _BLOCK_ROWS]


def _in_rows(vectors: Vectors) -> Vectors:
    """The vectors as float32 in rows along memory; no copy where they are that already."""
    return np.ascontiguousarray(vectors, np.float32)


def _refuse_not_finite(vectors: Vectors, what: str) -> None:
    if not np.isfinite(vectors).all():
        raise RunError(
            f"{what} is not of finite numbers; the network's weights may have diverged in training"
        )


UNKNOWN = -1
_BATCH = 32
_LISTED = 5


@dataclass(frozen=True)
class NamedImage:
    """An image as the network is shown it.

    Attributes:
        name: its key in the dataset, or its file's name.
        crop: uint8 (S, S, 3) RGB, the center.
        label: class number, or `UNKNOWN`.
    """

    name: str
    crop: Crop
    label: int


@dataclass(frozen=True)
class Prediction:
    """An image, and the five likeliest classes, likeliest first, with their probabilities."""

    image: NamedImage
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Whether the likeliest class is the label."""
        return self.classes[0] == self.image.label


@dataclass(frozen=True)
class Neighborhood:
    """An image, and the nearest images of another split with their distances, nearest first."""

    query: NamedImage
    found: tuple[NamedImage, ...]
    distances: tuple[float, ...]


def named_images(
    names: Sequence[str], spec: Spec, dataset: Dataset | None, split: str = "val"
) -> list[NamedImage]:
    """Read images by file names or by keys of a split; a name that is a file's is taken for that.

    Args:
        names: files or keys.
        spec: what the network takes.
        dataset: where keys are looked up, or None where there is none.
        split: of the keys.

    Raises:
        UsageError: neither a file nor a key, or not an image.
    """
    keys = [name for name in names if not Path(name).is_file()]
    if keys and dataset is None:
        raise UsageError(f"{keys[0]}: no such file, and no dataset is known that could hold it as a key")
    stored = read_stored(dataset, split, find_places(dataset, split, keys)) if dataset and keys else []
    by_key = {key: of_stored(image, spec) for key, image in zip(keys, stored, strict=True)}
    return [
        by_key.get(name) or NamedImage(Path(name).name, crop_of_file(Path(name), spec), UNKNOWN)
        for name in names
    ]


def some_images(dataset: Dataset, split: str, spec: Spec, count: int, seed: int) -> list[NamedImage]:
    """Draw `count` images of a split at random, fewer where it holds fewer.

    Raises:
        UsageError: no such split, or an image that does not decode.
    """
    places = _shuffled(dataset, split, seed)[:count]
    return [of_stored(stored, spec) for stored in read_stored(dataset, split, places)]


def of_stored(stored: StoredImage, spec: Spec) -> NamedImage:
    """A stored image as the network is shown it."""
    return NamedImage(stored.key, crop_of_stored(stored.data, spec), stored.label)


def predict(classifier: Classifier, images: Sequence[NamedImage]) -> list[Prediction]:
    """Classify images; of equally likely classes the lower number comes first."""
    found: list[Prediction] = []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        pixels = as_batch([image.crop for image in batch]).to(classifier.mean.device)
        with torch.inference_mode():
            probabilities = classifier.classify(pixels).double().softmax(dim=1).cpu().numpy()
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :_LISTED]
        for image, classes, row in zip(batch, order, probabilities, strict=True):
            topk_stable = tuple(int(label) for label in classes)
            found.append(Prediction(image, topk_stable, tuple(float(row[label]) for label in classes)))
    return found


def some_predictions(
    classifier: Classifier, dataset: Dataset, split: str, count: int, seed: int, only_errors: bool = False
) -> list[Prediction]:
    """Classify images of a split in random order until `count` are found, or all have been seen.

    Args:
        classifier: in evaluation mode.
        dataset: of the classifier's classes.
        split: usually "val".
        count: images wanted; fewer come where there are no more.
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


def find_neighbors(
    classifier: Classifier,
    queries: Sequence[NamedImage],
    dataset: Dataset,
    split: str = "train",
    count: int = 6,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Neighborhood]:
    """Search a whole split for the images whose features are nearest to the queries'.

    Features are the last hidden layer's behind its ReLU, distances Euclidean, the search exact: see
    `trainer.inference.neighbors.nearest`. One batch's features are held at a time.

    Args:
        classifier: in evaluation mode.
        queries: images; one that is in the split itself finds itself first.
        dataset: the dataset that is searched.
        split: usually "train".
        count: neighbors of each.
        batch_size: images per step.
        progress: called with the images searched and all of them.

    Raises:
        UsageError: no such split.
        RunError: a sample could not be read, or the network gives no numbers.
    """
    device = this_machine().device
    classifier.to(device)  # before the queries' features: those of another device differ in rounding
    crops = as_batch([query.crop for query in queries]).to(device)
    parts = (crops[start : start + batch_size] for start in range(0, len(crops), batch_size))
    wanted = np.concatenate([features(classifier, part) for part in parts])
    near = nearest(wanted, split_features(classifier, dataset, split, batch_size, progress), count)
    places = sorted(set(chain.from_iterable(near.indices.tolist())))
    images = dict(
        zip(places, (of_stored(s, classifier.spec) for s in read_stored(dataset, split, places)), strict=True)
    )
    return [
        Neighborhood(query, tuple(images[place] for place in row), tuple(distances))
        for query, row, distances in zip(queries, near.indices.tolist(), near.distances.tolist(), strict=True)
    ]


def _shuffled(dataset: Dataset, split: str, seed: int) -> list[int]:
    return [int(place) for place in np.random.default_rng(seed).permutation(dataset.samples(split))]
