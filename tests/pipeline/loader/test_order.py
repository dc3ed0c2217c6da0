"""Order of an epoch: each sample exactly as often as it should be, the same for any number of processes."""

from itertools import chain, pairwise

import numpy as np
from hypothesis import assume, example, given, strategies as st

from pipeline.loader.order import EvaluationOrder, TrainingOrder, lanes_of

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=12)
WORLD_SIZES = st.integers(1, 8)


def listed(samples):
    """List a batch's samples as (shard, sample), in order."""
    return list(zip(samples.shards.tolist(), samples.samples.tolist(), strict=True))


def epoch_of(order):
    return [listed(order.batch(number)) for number in range(order.batches)]


def everything(sizes):
    return {(shard, k) for shard, size in enumerate(sizes) for k in range(size)}


def assert_uses_cover(order, start):
    """Each shard of each batch is open then, and none longer than from its first batch to its last."""
    uses = order.uses(start)
    assert uses == sorted(uses)
    for one, other in pairwise(sorted(uses, key=lambda use: (use.shard, use.first))):
        assert one.shard < other.shard or one.last + 1 < other.first  # no shard is opened twice
    for number in range(start, order.batches):
        needed = set(order.batch(number).shards.tolist())
        assert needed <= {use.shard for use in uses if use.first <= number <= use.last}
    for use in uses:
        assert all(use.shard in order.batch(number).shards for number in (use.first, use.last))


def assert_parts_are_the_whole(order, parts, start):
    """What the workers of a process make is what the process makes."""
    pieces = [order.part(number, parts) for number in range(parts)]
    for number in range(start, order.batches):
        found = [listed(piece.batch(number)) for piece in pieces]
        assert list(chain(*found)) == listed(order.batch(number))
        assert max(map(len, found)) - min(map(len, found)) <= 1
    for piece in pieces:
        assert_uses_cover(piece, start)


@given(
    SIZES,
    WORLD_SIZES,
    st.integers(1, 9),
    st.integers(0, 5),
    st.integers(0, 3),
    st.integers(1, 80),
    st.floats(0, 1),
    st.integers(1, 4),
)
@example([13], 2, 3, 1, 0, 1, 0.5, 2)
@example([8], 8, 1, 0, 0, 8, 0.0, 3)
def test_the_processes_slices_are_the_whole_epoch(sizes, world_size, local, epoch, seed, lanes, cut, parts):
    batch = world_size * local
    assume(sum(sizes) >= batch)

    def order(rank=0, world_size=1):
        return TrainingOrder(
            sizes, seed, epoch, batch, lanes=min(lanes, batch), rank=rank, world_size=world_size
        )

    whole = epoch_of(order())
    ranks = [order(rank, world_size) for rank in range(world_size)]
    slices = [epoch_of(one) for one in ranks]
    assert [list(chain(*batch)) for batch in zip(*slices, strict=True)] == whole
    seen = list(chain(*whole))
    assert len(seen) == len(set(seen)) == sum(sizes) // batch * batch
    assert set(seen) <= everything(sizes)
    start = int(cut * (len(whole) - 1))
    assert listed(order().batch(start)) == whole[start]  # entered there
    for one in ranks:
        assert_uses_cover(one, start)
        assert_parts_are_the_whole(one, parts, start)


@given(SIZES, WORLD_SIZES, st.integers(1, 9), st.floats(0, 1), st.integers(1, 4))
@example([5], 8, 3, 0.0, 1)  # more processes than batches
@example([5], 1, 4, 0.0, 3)  # more workers than rows of the last batch
def test_an_evaluation_shows_each_sample_once_in_batches_of_the_same_samples(
    sizes, world_size, batch, cut, parts
):
    whole = epoch_of(EvaluationOrder(sizes, batch))
    assert list(chain(*whole)) == sorted(everything(sizes))
    assert all(len(one) == batch for one in whole[:-1])
    for rank in range(world_size):
        order = EvaluationOrder(sizes, batch, rank=rank, world_size=world_size)
        assert epoch_of(order) == whole[rank::world_size]
        assert_uses_cover(order, int(cut * order.batches))
        assert_parts_are_the_whole(order, parts, int(cut * order.batches))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(listed(TrainingOrder([10] * 30, seed, epoch, 50).batch(0)))
        for seed in range(4)
        for epoch in range(25)
    }
    assert len(orders) == 100


def test_samples_are_uniform_over_batches():
    """Each of 48 samples is equally often in each of 6 batches, over 1,000 epochs."""
    counts = np.zeros((48, 6))
    for epoch in range(1000):
        order = TrainingOrder([16] * 3, 1, epoch, 8, lanes=2)
        for number in range(6):
            shards, samples = order.batch(number)
            counts[shards * 16 + samples, number] += 1
    expected = 1000 / 6
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 350  # χ² of 235 degrees of freedom: above 325 once in 10,000


def test_what_is_left_out_changes():
    """Of 103 samples 3 are left out; over 200 epochs, each sample about six times."""
    sizes = [50, 53]
    missed = [
        everything(sizes) - set(chain(*epoch_of(TrainingOrder(sizes, 0, epoch, 10)))) for epoch in range(200)
    ]
    assert {len(left) for left in missed} == {3}
    counts = np.bincount([shard * 50 + k for left in missed for shard, k in left], minlength=103)
    assert counts.max() <= 25
    assert (counts > 0).mean() > 0.9


def test_a_process_reads_few_shards_at_a_time_and_every_batch_mixes_many():
    order = TrainingOrder([100] * 64, 0, 0, 256, rank=1, world_size=4)
    shards = [len(set(order.batch(number).shards.tolist())) for number in range(order.batches)]
    assert lanes_of(256, shuffled=True) == 32
    assert max(shards) <= 2 * 32 // 4  # a lane may end one shard and begin the next
    assert min(shards) >= 32 // 4
    assert lanes_of(256, shuffled=False) == lanes_of(4096, shuffled=True) == 64
    assert lanes_of(1, shuffled=True) == 1


def test_samples_that_shared_a_batch_seldom_share_the_next_one():
    size, batch, count = 500, 128, 32_000
    place = np.zeros((2, count), int)
    for epoch in (0, 1):
        order = TrainingOrder([size] * 64, 3, epoch, batch)
        for number in range(order.batches):
            shards, samples = order.batch(number)
            place[epoch, shards * size + samples] = number
    _, together = np.unique(place[0] * batch * count + place[1], return_counts=True)
    again = (together * (together - 1)).sum() / (count * (batch - 1))
    # 0.0040 in a full permutation; some more here, as a batch takes eight samples of a shard of 500.
    assert again < 0.0055
