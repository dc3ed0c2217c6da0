"""Exact search against float64 brute force and scikit-learn, with near-duplicates that defeat float32."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.neighbors import NearestNeighbors

from pipeline import RunError, UsageError
from trainer.inference.neighbors import nearest


def brute_force(queries, rows, count):
    """Indices and distances of the nearest rows, from differences in float64; ties go to the lower index."""
    differences = rows.astype(np.float64)[None] - queries.astype(np.float64)[:, None]
    squared = (differences**2).sum(axis=2)
    order = np.lexsort((np.broadcast_to(np.arange(len(rows)), squared.shape), squared))[:, :count]
    return order, np.sqrt(np.take_along_axis(squared, order, axis=1))


def in_chunks(rows, size):
    return (rows[start : start + size] for start in range(0, len(rows), size))


def normal(seed, *shape, scale=1.0, shift=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale + shift).astype(np.float32)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 60),
    length=st.integers(1, 40),
    count=st.integers(1, 12),
    chunk=st.integers(1, 70),
    levels=st.integers(1, 4),
)
def test_ties_are_ordered_as_brute_force_orders_them(seed, rows, length, count, chunk, levels):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, levels, (rows, length)).astype(np.float32)
    queries = rng.integers(0, levels, (3, length)).astype(np.float32)
    found = nearest(queries, in_chunks(data, chunk), count)
    indices, distances = brute_force(queries, data, count)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.distances, distances)


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1e18, 3e37])
def test_any_scale_from_underflow_to_overflow(scale):
    data, queries = normal(0, 200, 24, scale=scale), normal(1, 4, 24, scale=scale)
    found = nearest(queries, in_chunks(data, 64), 5)
    indices, distances = brute_force(queries, data, 5)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-14)


def test_it_agrees_with_scikit_learn():
    data, queries = normal(0, 5000, 64), normal(1, 9, 64)
    found = nearest(queries, in_chunks(data, 700), 7)
    reference = NearestNeighbors(algorithm="brute").fit(data.astype(np.float64))
    distances, indices = reference.kneighbors(queries.astype(np.float64), 7)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-7)


@pytest.mark.parametrize("queries", [1, 3])
def test_near_duplicates_that_float32_cannot_tell_apart(queries):
    """Far from zero, ‖a‖² − 2ab + ‖b‖² is wrong in every digit of these distances."""
    wanted = normal(2, queries, 512, shift=100.0)
    data = np.repeat(wanted, 300, axis=0)
    steps = np.random.default_rng(3).permutation(len(data))
    data[np.arange(len(data)), np.arange(len(data)) % 512] += steps * 1e-4  # a step of float32 at 100 is 8e-6
    expanded = (data**2).sum(axis=1) - 2 * (data @ wanted[0]) + (wanted[0] ** 2).sum()
    indices, _ = brute_force(wanted, data, 40)
    assert (np.argsort(expanded)[:40] != indices[0]).any()
    np.testing.assert_array_equal(nearest(wanted, in_chunks(data, 64), 40).indices, indices)


def test_equal_rows_keep_their_order_across_blocks():
    data = np.repeat(normal(4, 1, 16), 5000, axis=0)  # more than one block
    found = nearest(normal(5, 2, 16), [data], 6)
    np.testing.assert_array_equal(found.indices, [np.arange(6)] * 2)


def test_fewer_rows_than_neighbors_give_fewer_columns():
    found = nearest(normal(0, 2, 4), [normal(1, 3, 4)], 10)
    assert found.indices.shape == found.distances.shape == (2, 3)
    assert found.indices.dtype == np.int64
    assert found.distances.dtype == np.float64


def test_a_single_vector_is_one_query_and_other_types_are_converted():
    data = normal(1, 30, 4)
    found = nearest(data[7], [data.astype(np.float64)], 1)
    assert found.indices.tolist() == [[7]]
    assert found.distances.tolist() == [[0.0]]


def test_a_memory_mapped_file_is_searched_in_blocks(tmp_path):
    data = normal(6, 10_000, 128)  # 5 MB
    np.save(tmp_path / "rows.npy", data)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    queries = normal(7, 3, 128)
    tracemalloc.start()
    found = nearest(queries, [mapped], 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < data.nbytes
    np.testing.assert_array_equal(found.indices, brute_force(queries, data, 4)[0])


@pytest.mark.parametrize(
    ("queries", "chunks", "count", "error", "text"),
    [
        (np.ones((1, 4)), [np.ones((2, 5))], 1, UsageError, "shape (2, 5) cannot be compared"),
        (np.ones((1, 4)), [np.ones(4)], 1, UsageError, "shape (4,)"),
        (np.ones((1, 4)), [], 1, UsageError, "no vectors to search"),
        (np.ones((0, 4)), [np.ones((2, 4))], 1, UsageError, "no vector to find"),
        (np.full((1, 4), np.nan), [np.ones((2, 4))], 1, RunError, "a query holds NaN or infinity"),
        (np.ones((1, 4)), [np.full((2, 4), np.inf)], 1, RunError, "a row holds NaN or infinity"),
        (np.ones((1, 4)), [np.array([[1, 2, 3, np.nan]])], 1, RunError, "a row holds NaN"),
    ],
)
def test_what_cannot_be_searched(queries, chunks, count, error, text):
    with pytest.raises(error) as caught:
        nearest(queries.astype(np.float32), [chunk.astype(np.float32) for chunk in chunks], count)
    assert text in str(caught.value)
