"""Order of an epoch: which samples each rank reads, in which order. Pure arithmetic; no file is read.

    shards ─ permuted ─► one long line ─ started at a random sample ─► a share per rank ─► segments

An epoch's order depends on the seed and the epoch alone, so a run can enter any epoch without having read
the earlier ones, on any number of processes. A segment is the part of a share that one DALI pipeline reads.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from pipeline.seeds import derive_seed

SEGMENT = 65_536
"""Largest number of samples in a segment. DALI parses a segment's index before its first image, and keeps it
in memory: 65,536 samples take 0.1 s and 55 MB, ImageNet's 1,281,167 take 1.6 s and 1.1 GB (on two cores)."""


class Piece(NamedTuple):
    """A range of samples in one shard.

    Attributes:
        shard: Number of the shard in the split.
        first: First sample of the range, counted from 0 in the shard.
        last: Sample after the last of the range.
    """

    shard: int
    first: int
    last: int

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.last - self.first


def training_share(
    sizes: Sequence[int], seed: int, epoch: int, rank: int, world_size: int, batch_size: int
) -> list[Piece]:
    """Return the samples that a rank reads in a training epoch: the same number of full batches on each rank.

    The split's shards are permuted. The line of their samples starts at a random sample and wraps around,
    so that each epoch gives a rank other samples and leaves out other samples: fewer than a global batch.

    Args:
        sizes: Number of samples in each shard.
        seed: Seed of the order.
        epoch: Number of the epoch, counted from 0.
        rank: Rank of the process, 0..world_size - 1.
        world_size: Number of processes.
        batch_size: Samples per batch of one process.

    Returns:
        Pieces in reading order, together `sum(sizes) // (world_size * batch_size)` batches.
    """
    order = sorted(range(len(sizes)), key=lambda shard: (derive_seed(seed, "order", epoch, shard), shard))
    total = sum(sizes)
    share = total // (world_size * batch_size) * batch_size
    start = derive_seed(seed, "start", epoch) % max(total, 1) + rank * share
    return _cut(sizes, order, start, share)


def evaluation_share(sizes: Sequence[int], rank: int, world_size: int) -> list[Piece]:
    """Return the samples that a rank reads in an evaluation: an equal share of the split, in order.

    Each sample is in exactly one rank's share; shares differ by one sample at most.

    Args:
        sizes: Number of samples in each shard.
        rank: Rank of the process, 0..world_size - 1.
        world_size: Number of processes.
    """
    total = sum(sizes)
    start = total * rank // world_size
    return _cut(sizes, range(len(sizes)), start, total * (rank + 1) // world_size - start)


def segments(pieces: Sequence[Piece], batch_size: int, most: int = SEGMENT) -> list[list[Piece]]:
    """Divide a rank's share into segments of whole batches, of about equal length.

    Args:
        pieces: The share, in reading order.
        batch_size: Samples per batch; the last segment may end with a smaller batch.
        most: Largest number of samples in a segment. A batch larger than this is a segment of its own.

    Returns:
        The pieces of each segment, in reading order.
    """
    lengths = [piece.samples for piece in pieces]
    batches = math.ceil(sum(lengths) / batch_size)
    count = math.ceil(batches / max(most // batch_size, 1))
    ends = [min(batches * k // count * batch_size, sum(lengths)) for k in range(1, count + 1)]
    parts = [_cut(lengths, range(len(pieces)), start, end - start) for start, end in pairwise([0, *ends])]
    return [
        [Piece(pieces[k].shard, pieces[k].first + first, pieces[k].first + last) for k, first, last in part]
        for part in parts
    ]


def most_bytes(samples: Sequence[int], sizes: Sequence[int], run: int) -> int:
    """Return an upper bound on the size of the shards that `run` consecutive samples touch, in any order.

    Args:
        samples: Number of samples in each shard.
        sizes: Size of each shard in bytes.
        run: Number of consecutive samples.
    """
    densest = sorted(range(len(sizes)), key=lambda k: sizes[k] / max(samples[k], 1), reverse=True)
    total, picked = 0, 0
    for shard in densest:
        if picked >= run:
            break
        total, picked = total + sizes[shard], picked + samples[shard]
    return min(total + 2 * max(sizes, default=0), sum(sizes))  # plus a partly read shard at each end


def _cut(sizes: Sequence[int], order: Sequence[int], start: int, count: int) -> list[Piece]:
    """Return `count` samples of the shards in `order`, from sample `start` on, wrapping around at the end.

    The shards may as well be pieces of shards, numbered from 0.
    """
    ends = list(accumulate(sizes[shard] for shard in order))
    pieces = []
    while count > 0:
        start %= ends[-1]
        at = bisect_right(ends, start)
        shard = order[at]
        first = sizes[shard] - (ends[at] - start)
        last = min(sizes[shard], first + count)
        pieces.append(Piece(shard, first, last))
        start, count = start + last - first, count - (last - first)
    return pieces
