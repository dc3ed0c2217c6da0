"""Exact nearest neighbors in feature space.

The rows that are searched stream by in blocks; they are never in memory all at once.

Shapes: Q queries, N rows searched, n rows of a block, D length of a vector, k neighbors per query, S side of
the crop.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from pipeline.arguments import COUNT, checked
from pipeline.dataset.dataset import Dataset
from pipeline.errors import RunError, UsageError
from pipeline.progress import OnProgress, no_progress
from trainer.inference.examples import NamedImage, stored_images
from trainer.inference.features import features, split_features, this_machine
from trainer.inference.preprocess import as_batch
from trainer.models.classifier import Classifier
from trainer.precision import PrecisionName

Vectors = NDArray[np.float32]
"""float32 (n, D)."""

# 512 rows of 4,096 numbers are 8 MB: large enough for the matrix product to run at full speed, and small
# enough to bound memory when a caller passes a whole memory-mapped file as one chunk.
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Neighbors:
    """The nearest rows of each query, nearest first.

    Attributes:
        indices: int64 (Q, min(k, N)), row numbers from 0, in the order in which the rows were given.
        distances: float64 (Q, min(k, N)), Euclidean distances.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float64]


@checked(count=COUNT)
def nearest(queries: Vectors, chunks: Iterable[Vectors], count: int) -> Neighbors:
    """Find the `count` nearest rows of each query by Euclidean distance, exactly.

    Rows are ranked by Σ(a − b)² in float64; ties go to the lower index. A matrix product in float32 sorts out
    most rows before: a row that ‖a‖² + ‖b‖² − 2ab puts farther than the k-th neighbor found so far, by more
    than the rounding error, cannot be among the nearest. Only the other rows are ranked by their differences.
    Near-duplicates, which the product cannot distinguish, are therefore in their true order.

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
    queries = np.ascontiguousarray(np.atleast_2d(queries), np.float32)
    if not len(queries):
        raise UsageError("there is no vector to find neighbors of; give at least one query")
    _refuse_not_finite(queries, "a query")
    indices = np.full((len(queries), count), -1, np.int64)
    squared = np.full((len(queries), count), np.inf)
    seen = 0
    for rows in _blocks(chunks, queries.shape[1]):
        lower = _lower_bounds(queries, rows)
        for query in np.flatnonzero((lower <= squared[:, -1:]).any(axis=1)):
            chosen = np.flatnonzero(lower[query] <= squared[query, -1])
            differences = rows[chosen].astype(np.float64)
            differences -= queries[query]
            differences *= differences
            # Sums along contiguous rows add in the same order, so that equal rows get equal sums.
            distances = np.concatenate([squared[query], differences.sum(axis=1)])
            numbers = np.concatenate([indices[query], seen + chosen])
            best = np.lexsort((numbers, distances))[:count]
            squared[query], indices[query] = distances[best], numbers[best]
        seen += len(rows)
    if not seen:
        raise UsageError("there are no vectors to search")
    return Neighbors(indices[:, :seen], np.sqrt(squared[:, :seen]))


def _lower_bounds(queries: Vectors, rows: Vectors) -> NDArray[np.float64]:
    """Return lower bounds of the squared distances, float64 (Q, n).

    A sum of D products in float32, in any order, has an error of at most D · eps / 2 relative to their
    absolute values (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1): for all terms
    together, D · eps relative to the norms. Products below the smallest normal number may be lost.
    """
    length, float32 = rows.shape[1], np.finfo(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        products = (rows @ queries.T).T  # several times faster than queries @ rows.T on few queries
        own, others = (np.einsum("nd,nd->n", v, v).astype(np.float64) for v in (queries, rows))
        rounding = 1.1 * (length + 16) * float(float32.eps)  # a tenth more, for terms of higher order
        lower: NDArray[np.float64] = (own[:, None] + others) * (1 - rounding) - 2 * products
        lower -= 4 * length * float(float32.tiny)
    if not np.isfinite(lower).all():
        _refuse_not_finite(rows, "a row")
        lower[~np.isfinite(lower)] = -np.inf  # a bound that overflowed excludes nothing
    return lower


def _blocks(chunks: Iterable[Vectors], length: int) -> Iterator[Vectors]:
    for chunk in chunks:
        if chunk.ndim != 2 or chunk.shape[1] != length:
            raise UsageError(
                f"vectors of shape {chunk.shape} cannot be compared with queries of {length} numbers; give "
                "features of one layer of one network"
            )
        for start in range(0, len(chunk), _BLOCK_ROWS):
            yield np.ascontiguousarray(chunk[start : start + _BLOCK_ROWS], np.float32)


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


@checked(count=COUNT, batch_size=COUNT)
def find_neighbors(
    classifier: Classifier,
    queries: Sequence[NamedImage],
    dataset: Dataset,
    split: str = "train",
    count: int = 6,
    batch_size: int = 64,
    precision: PrecisionName = "float32",
    on_progress: OnProgress = no_progress,
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
        precision: Precision of the forward pass.
        on_progress: Called after each batch with (images searched, images in all).

    Raises:
        UsageError: there is no such split.
        RunError: a sample cannot be read, or the network's outputs are not finite.
    """
    device = this_machine().device
    classifier.to(device)  # features of queries and rows must come from one device: rounding differs
    crops = as_batch([query.crop for query in queries]).to(device)
    batches = (crops[start : start + batch_size] for start in range(0, len(crops), batch_size))
    query_features = np.concatenate([features(classifier, batch, precision) for batch in batches])
    rows = split_features(classifier, dataset, split, batch_size, precision, on_progress)
    near = nearest(query_features, rows, count)
    positions = sorted(set(chain.from_iterable(near.indices.tolist())))
    stored = stored_images(dataset, split, positions, classifier.spec)
    images = dict(zip(positions, stored, strict=True))
    return [
        Neighborhood(query, tuple(images[position] for position in row), tuple(distances))
        for query, row, distances in zip(queries, near.indices.tolist(), near.distances.tolist(), strict=True)
    ]
