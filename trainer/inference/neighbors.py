"""Exact nearest neighbors in feature space.

The rows that are searched stream by in chunks; they are never in memory all at once.

Shapes: Q queries, N rows searched, D length of a vector, k neighbors per query, S side of the crop.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.samples import read_stored
from pipeline.errors import RunError, UsageError
from trainer.inference.examples import NamedImage, of_stored
from trainer.inference.features import features, split_features, this_machine
from trainer.inference.preprocess import as_batch
from trainer.models.classifier import Classifier

Vectors = NDArray[np.float32]
"""float32 (n, D)."""

# Rows per matrix product. 2,048 rows of 4,096 numbers are 32 MB: large enough for the product to run at full
# speed, and small enough to bound memory when a caller passes a whole memory-mapped file as one chunk.
_BLOCK_ROWS = 2048
# Bytes of float64 differences held at once while candidates are ranked exactly.
_RANKING_BYTES = 16 << 20
_FLOAT32_ROUNDING = 2.0**-24  # unit roundoff
_FLOAT32_SMALLEST = 2.0**-126  # smallest normal number


@dataclass(frozen=True)
class Neighbors:
    """The nearest rows of each query, nearest first.

    Attributes:
        indices: int64 (Q, min(k, N)), row numbers from 0, in the order in which the rows were given.
        distances: float64 (Q, min(k, N)), Euclidean distances.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float64]


def nearest(queries: Vectors, chunks: Iterable[Vectors], count: int) -> Neighbors:
    """Find the `count` nearest rows of each query by Euclidean distance, exactly.

    Rows are ranked by Σ(a − b)² in float64; ties go to the lower index. A float32 lower bound sorts out most
    rows before: with κ from `rounding_bound`, ‖b‖²(1 − κ) − 2a·b + ‖a‖²(1 − κ) in float32 is at most the true
    squared distance, whatever the order of summation. A row whose bound exceeds the distance of the k-th
    neighbor found so far cannot be among the nearest. The other rows, about k per block, are ranked by their
    differences. Near-duplicates, which the float32 expansion cannot distinguish, are therefore in their true
    order.

    Memory: the queries, one chunk, and some 60 MB; a chunk may be a memory-mapped array of any length.

    Args:
        queries: float32 (Q, D), or (D,) for one query.
        chunks: Arrays (n, D) of rows to search; n may differ, and other dtypes are converted to float32.
        count: Number of neighbors per query, k, 1 or more.

    Raises:
        UsageError: there are no queries or no rows, rows and queries differ in length, or `count` is
            below 1.
        RunError: a query or row holds NaN or infinity.
    """
    search = _Search(_in_rows(np.atleast_2d(queries)), count)
    for chunk in chunks:
        if chunk.ndim != 2 or chunk.shape[1] != search.queries.shape[1]:
            raise UsageError(
                f"vectors of shape {chunk.shape} cannot be compared with queries of "
                f"{search.queries.shape[1]} numbers; give features of one layer of one network"
            )
        for block in _blocks(chunk):
            search.add(_in_rows(block))
    return search.result()


def rounding_bound(length: int) -> float:
    """Return κ, a bound of the error of ‖b‖² − 2a·b in float32, relative to ‖a‖² + ‖b‖².

    A sum of n products in float32, in any order, fused or not, has an error of at most γ · Σ|aᵢbᵢ| with
    γ = nu / (1 − nu) and u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1);
    Σ|aᵢbᵢ| ≤ (‖a‖² + ‖b‖²) / 2. The product is doubled, ‖b‖² has an error of γ‖b‖², and a few more roundings
    are added: 2γ for n = `length` + 16 covers them all.

    Args:
        length: Length of the vectors, D.
    """
    nu = (length + 16) * _FLOAT32_ROUNDING
    return 2 * nu / (1 - nu)


class _Search:
    """State of a search: the nearest rows so far, and the number of rows seen."""

    def __init__(self, queries: Vectors, count: int) -> None:
        if count < 1:
            raise UsageError(f"{count} neighbors were asked for; ask for at least 1")
        if not len(queries):
            raise UsageError("there is no vector to find neighbors of; give at least one query")
        _refuse_not_finite(queries, "a query")
        self.queries = queries
        self._count, self._seen = count, 0
        self._exact = queries.astype(np.float64)
        self._bound = rounding_bound(queries.shape[1])
        # Products below float32's smallest normal number may be flushed to 0; this bounds the loss.
        self._underflow = 4 * queries.shape[1] * _FLOAT32_SMALLEST
        self._squares = (self._exact**2).sum(axis=1)
        self._distances = np.full((len(queries), count), np.inf)  # squared distances
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
        """Return lower bounds of the squared distances, float64 (Q, n)."""
        with np.errstate(over="ignore", invalid="ignore"):
            products = (rows @ self.queries.T).T  # several times faster than queries @ rows.T on few queries
            squares = np.einsum("nd,nd->n", rows, rows)
            lower: NDArray[np.float64] = squares.astype(np.float64) * (1 - self._bound) - 2.0 * products
        lower += (self._squares * (1 - self._bound) - self._underflow)[:, None]
        if np.isfinite(squares).all() and np.isfinite(lower).all():
            return lower
        _refuse_not_finite(rows, "a row")
        # A bound that overflowed excludes nothing, so the row must be ranked exactly.
        lower[~np.isfinite(lower)] = -np.inf
        return lower

    def _add_to(self, query: np.intp, rows: Vectors, lower: NDArray[np.float64]) -> None:
        """Rank the candidates of a block, lowest bound first, until the rest can only be farther."""
        candidates = np.flatnonzero(lower <= self._distances[query, -1])
        candidates = candidates[np.argsort(lower[candidates], kind="stable")]
        step = max(self._count, _RANKING_BYTES // (8 * rows.shape[1]))
        start = 0
        size = self._count  # the first k tighten the limit, and leave few candidates to rank
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
        # Sums along contiguous rows add in the same order, so that equal rows get equal sums.
        distances = np.concatenate([self._distances[query], differences.sum(axis=1)])
        indices = np.concatenate([self._indices[query], self._seen + chosen])
        best = np.lexsort((indices, distances))[: self._count]
        self._distances[query], self._indices[query] = distances[best], indices[best]


def _blocks(chunk: Vectors) -> Iterator[Vectors]:
    for start in range(0, len(chunk), _BLOCK_ROWS):
        yield chunk[start : start + _BLOCK_ROWS]


def _in_rows(vectors: Vectors) -> Vectors:
    """Convert vectors to contiguous float32; no copy if they are that already."""
    return np.ascontiguousarray(vectors, np.float32)


def _refuse_not_finite(vectors: Vectors, what: str) -> None:
    if not np.isfinite(vectors).all():
        raise RunError(
            f"{what} holds NaN or infinity: the network's weights may have diverged in training; use another"
            " checkpoint"
        )


@dataclass(frozen=True)
class Neighborhood:
    """A query image and the nearest images of a split.

    Attributes:
        query: The query image.
        found: Nearest images of the split, nearest first.
        distances: Euclidean distances of their features from the query's.
    """

    query: NamedImage
    found: tuple[NamedImage, ...]
    distances: tuple[float, ...]


def find_neighbors(
    classifier: Classifier,
    queries: Sequence[NamedImage],
    dataset: Dataset,
    split: str = "train",
    count: int = 6,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Neighborhood]:
    """Search a whole split for the images whose features are nearest to those of the queries.

    Features are the activations of the last hidden layer after its ReLU; the search by Euclidean distance is
    exact, see `nearest`. The features of only one batch are in memory at a time.

    Args:
        classifier: Network in evaluation mode; it is moved to the first GPU, if there is one.
        queries: Query images; a query that is in the split finds itself first.
        dataset: Dataset to search.
        split: Name of the split to search, usually "train".
        count: Number of neighbors per query.
        batch_size: Number of images per batch.
        progress: Called after each batch with (images searched, images in all).

    Raises:
        UsageError: there is no such split.
        RunError: a sample cannot be read, or the network's outputs are not finite.
    """
    device = this_machine().device
    classifier.to(device)  # features of queries and rows must come from one device: rounding differs
    crops = as_batch([query.crop for query in queries]).to(device)
    batches = (crops[start : start + batch_size] for start in range(0, len(crops), batch_size))
    query_features = np.concatenate([features(classifier, batch) for batch in batches])
    rows = split_features(classifier, dataset, split, batch_size, progress)
    near = nearest(query_features, rows, count)
    positions = sorted(set(chain.from_iterable(near.indices.tolist())))
    stored = read_stored(dataset, split, positions)
    images = dict(zip(positions, (of_stored(s, classifier.spec) for s in stored), strict=True))
    return [
        Neighborhood(query, tuple(images[position] for position in row), tuple(distances))
        for query, row, distances in zip(queries, near.indices.tolist(), near.distances.tolist(), strict=True)
    ]
