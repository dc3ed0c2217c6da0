"""Which samples an epoch shows, to whom and in which order: arithmetic, known before a byte is read.

    shards ─ permuted ─► one long line ─ begun anywhere ─► a share for each rank ─► segments

An epoch's order depends on the seed and the epoch alone, so a run can enter any epoch without having
seen those before it, on any number of processes. A segment is what one DALI pipeline reads.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from pipeline.seeds import derive_seed

SEGMENT = 65_536
"""Samples in a segment at most. DALI parses a segment's index before its first image, and keeps it: 65,536
samples take 0.1 s and 55 MB, ImageNet's 1,281,167 take 1.6 s and 1.1 GB (measured on two cores)."""


class Piece(NamedTuple):
    """Samples `first` to `last` - 1 of a shard, by its number in the split."""

    shard: int
    first: int
    last: int

    @property
    def samples(self) -> int:
        """How many they are."""
        return self.last - self.first


def training_share(
    sizes: Sequence[int], seed: int, epoch: int, rank: int, world_size: int, batch_size: int
) -> list[Piece]:
    """What a rank sees in a training epoch: as many full batches as every other rank.

    The split's shards are permuted, and the line of their samples is begun anywhere and runs round, so
    that ranks see other samples, and other samples are left out, in every epoch. What is left out is
    fewer than a global batch.

    Args:
        sizes: samples of each shard.
        seed: of the order.
        epoch: counted from 0.
        rank: which process.
        world_size: number of processes.
        batch_size: samples of a batch of one process.

    Returns:
        Pieces in reading order, of `sum(sizes) // (world_size * batch_size)` batches together.
    """
    order = sorted(range(len(sizes)), key=lambda shard: (derive_seed(seed, "order", epoch, shard), shard))
    total = sum(sizes)
    share = total // (world_size * batch_size) * batch_size
    start = derive_seed(seed, "start", epoch) % max(total, 1) + rank * share
    return _cut(sizes, order, start, share)


def evaluation_share(sizes: Sequence[int], rank: int, world_size: int) -> list[Piece]:
    """What a rank measures: an even part of the split, in order; every sample is in one rank's part."""
    total = sum(sizes)
    start = total * rank // world_size
    return _cut(sizes, range(len(sizes)), start, total * (rank + 1) // world_size - start)


def segments(pieces: Sequence[Piece], batch_size: int, most: int = SEGMENT) -> list[list[Piece]]:
    """Divide a share into runs of whole batches of about equal length, `most` samples or fewer each.

    The last may end with a smaller batch. A batch larger than `most` is a segment of its own.
    """
    batches = math.ceil(sum(piece.samples for piece in pieces) / batch_size)
    if batches == 0:
        return []
    count = math.ceil(batches / max(most // batch_size, 1))
    ends = [batches * (k + 1) // count * batch_size for k in range(count)]
    found: list[list[Piece]] = [[]]
    seen = 0
    for piece in pieces:
        first = piece.first
        while first < piece.last:
            if seen == ends[len(found) - 1]:
                found.append([])
            last = min(piece.last, first + ends[len(found) - 1] - seen)
            found[-1].append(Piece(piece.shard, first, last))
            seen += last - first
            first = last
    return found


def most_bytes(samples: Sequence[int], sizes: Sequence[int], run: int) -> int:
    """Bytes of the shards that any `run` samples in a row lie in, at most, however shards are permuted.

    Args:
        samples: of each shard.
        sizes: bytes of each shard.
        run: samples in a row.
    """
    densest = sorted(range(len(sizes)), key=lambda k: sizes[k] / max(samples[k], 1), reverse=True)
    total, picked = 0, 0
    for shard in densest:
        if picked >= run:
            break
        total, picked = total + sizes[shard], picked + samples[shard]
    return min(total + 2 * max(sizes, default=0), sum(sizes))  # and at each end one of which it is a part


def _cut(sizes: Sequence[int], order: Sequence[int], start: int, count: int) -> list[Piece]:
    """`count` samples from number `start` on of the shards in `order`, running round at the end."""
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
