"""Order of an epoch: each sample exactly as often as it should be, for any world size."""

import math
from itertools import chain

import numpy as np
from hypothesis import example, given, strategies as st

from pipeline.loader.order import evaluation_share, most_bytes, segments, training_share

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12)
WORLD_SIZES = st.integers(1, 8)


def listed(pieces):
    """List the pieces' samples as (shard, sample), in order."""
    return [(piece.shard, k) for piece in pieces for k in range(piece.first, piece.last)]


def everything(sizes):
    return {(shard, k) for shard, size in enumerate(sizes) for k in range(size)}


@given(SIZES, WORLD_SIZES, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
@example([13], 2, 3, 1, 0)  # N % W ≠ 0 and (N // W) % B = 0
@example([8], 8, 1, 0, 0)
@example([7, 7, 7], 3, 7, 2, 0)
def test_ranks_share_an_epoch_and_leave_out_less_than_a_global_batch(sizes, world_size, batch, epoch, seed):
    shares = [
        listed(training_share(sizes, seed, epoch, rank, world_size, batch)) for rank in range(world_size)
    ]
    steps = sum(sizes) // (world_size * batch)
    assert {len(share) for share in shares} == {steps * batch}
    seen = list(chain(*shares))
    assert len(seen) == len(set(seen))
    assert set(seen) <= everything(sizes)
    assert sum(sizes) - len(seen) < world_size * batch


@given(SIZES, WORLD_SIZES)
@example([5], 8)  # more ranks than samples
def test_ranks_measure_each_sample_once_in_order(sizes, world_size):
    shares = [listed(evaluation_share(sizes, rank, world_size)) for rank in range(world_size)]
    assert list(chain(*shares)) == sorted(everything(sizes))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(SIZES, st.integers(1, 9), st.integers(1, 40), WORLD_SIZES)
def test_segments_are_whole_batches_of_the_same_samples(sizes, batch, most, world_size):
    pieces = evaluation_share(sizes, 0, world_size)
    found = segments(pieces, batch, most)
    assert listed(chain(*found)) == listed(pieces)
    lengths = [sum(piece.samples for piece in part) for part in found]
    assert all(0 < length <= max(most, batch) for length in lengths)
    assert all(length % batch == 0 for length in lengths[:-1])
    batches = [math.ceil(length / batch) for length in lengths]
    assert not batches or max(batches) - min(batches) <= 1


def test_epochs_and_seeds_have_orders_of_their_own():
    sizes = [10] * 30
    orders = [
        tuple(piece.shard for piece in training_share(sizes, seed, epoch, 0, 1, 10))
        for seed in range(4)
        for epoch in range(25)
    ]
    assert len(set(orders)) == 100
    assert training_share(sizes, 3, 7, 1, 2, 10) == training_share(sizes, 3, 7, 1, 2, 10)


def test_places_of_shards_are_uniform():
    """Each of 8 shards is equally often at each of 8 positions, over 1,000 epochs."""
    counts = np.zeros((8, 8))
    for epoch in range(1000):
        line = list(dict.fromkeys(piece.shard for piece in training_share([10] * 8, 1, epoch, 0, 1, 1)))
        counts[line, np.arange(8)] += 1
    expected = 1000 / 8
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 100  # χ² of 49 degrees of freedom: above 94.6 once in 10,000


def test_what_is_left_out_changes():
    """Of 103 samples 3 are left out; over 200 epochs, each sample about six times."""
    sizes = [50, 53]
    missed = [
        everything(sizes) - set(listed(training_share(sizes, 0, epoch, 0, 1, 10))) for epoch in range(200)
    ]
    assert {len(left) for left in missed} == {3}
    counts = np.bincount([shard * 50 + k for left in missed for shard, k in left], minlength=103)
    assert counts.max() <= 25
    assert (counts > 0).mean() > 0.9


@given(st.data(), SIZES, WORLD_SIZES, st.integers(1, 9), st.integers(0, 3))
def test_no_segment_of_any_epoch_lies_in_more_bytes_than_said(data, sizes, world_size, batch, epoch):
    count = len(sizes)
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=count, max_size=count))
    most = data.draw(st.integers(batch, 60))
    bound = most_bytes(sizes, weights, most // batch * batch)
    assert bound <= sum(weights)
    for rank in range(world_size):
        for pieces in segments(training_share(sizes, 0, epoch, rank, world_size, batch), batch, most):
            assert sum(weights[shard] for shard in {piece.shard for piece in pieces}) <= bound


def test_the_bound_on_a_segments_bytes_is_near_what_equal_shards_need():
    assert most_bytes([100] * 50, [1000] * 50, 1000) == 12_000  # ten, and a partly read one at each end
