"""Exact nearest neighbours of a few vectors among many that are never held at once.

Shapes: Q queries, N rows, D numbers of a vector, k neighbours wanted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError, UsageError

Vectors = NDArray[np.float32]

# Rows compared at once. 2,048 rows of 4,096 numbers are 32 MB: large enough for the matrix product to run
# at full speed, and what bounds the memory where a caller hands over a whole memory-mapped file.
_BLOCK_ROWS = 2048
# Bytes of float64 differences at once while candidates are ranked exactly.
_RANKING_BYTES = 16 << 20
_FLOAT32_ROUNDING = 2.0**-24
_FLOAT32_SMALLEST = 2.0**-126


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of each query, nearest first.

    Attributes:
        indices: int64 (Q, min(k, N)), rows counted from 0 in the order in which they were given.
        distances: float64 (Q, min(k, N)), Euclidean.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float64]


def nearest(queries: Vectors, chunks: Iterable[Vectors], count: int) -> Neighbours:
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
        count: neighbours wanted, 1 or more.

    Raises:
        UsageError: no rows, rows of another length than the queries', or a count below 1.
        RunError: a vector that is not of finite numbers.
    """
    search = _Search(_in_rows(np.atleast_2d(queries)), count)
    for chunk in chunks:
        if chunk.ndim != 2 or chunk.shape[1] != search.queries.shape[1]:
            raise UsageError(
                f"vectors of shape {chunk.shape} among rows of {search.queries.shape[1]} numbers; compare "
                "features of one layer of one net"
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
            raise UsageError(f"{count} neighbours were asked for; ask for at least 1")
        if not len(queries):
            raise UsageError("there is no vector to find neighbours of")
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

    def result(self) -> Neighbours:
        if not self._seen:
            raise UsageError("there are no vectors to search")
        found = min(self._count, self._seen)
        return Neighbours(self._indices[:, :found], np.sqrt(self._distances[:, :found]))

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
        raise RunError(f"{what} is not of finite numbers; the net's weights may have diverged in training")
