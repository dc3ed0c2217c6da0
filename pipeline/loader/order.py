"""Order of an epoch: which samples each global batch holds. Pure arithmetic; no file is read.

Training:

    shards ─ permuted ─► one long line ─ begun anywhere ─► lanes ─► each batch takes the next few of each lane

A lane is a stretch of the line. A batch takes the next few samples (some 8) of each lane, lane after lane,
so a process's slice of every batch comes from its own lanes: 1 / world_size of the line, and as many shards
at a time as it has lanes. Samples are permuted within each shard, so a batch mixes as many shards as there
are lanes. Any batch of any epoch is computed without those before it.

Evaluation: batches in the order of the split, which the processes take in turns.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.seeds import Purpose, random_generator

Integers = NDArray[np.int64]

_PER_LANE = 8
_MOST_LANES = 64


class Samples(NamedTuple):
    """Samples in the order of a batch.

    Attributes:
        shards: int64 (B,), number of each sample's shard in the split.
        samples: int64 (B,), number of the sample in its shard.
    """

    shards: Integers
    samples: Integers


class Use(NamedTuple):
    """The batches of one process for which it needs a shard.

    Attributes:
        first, last: Numbers of the first and the last of these batches, as `Order.batch` counts them.
        shard: Number of the shard in the split.
    """

    first: int
    last: int
    shard: int


class Order(ABC):
    """The batches of one epoch, as one of `world_size` processes reads them.

    Attributes:
        batches: Number of batches that this process reads.
    """

    batches: int

    @abstractmethod
    def batch(self, number: int) -> Samples:
        """Return the samples of this process's batch `number`, counted from 0."""

    @abstractmethod
    def uses(self, start: int = 0) -> list[Use]:
        """Return which shards this process's batches from `start` on need, in the order of first use."""

    @abstractmethod
    def part(self, number: int, parts: int) -> Self:
        """Return the order of a part of each batch: the rows `share(rows, number, parts)`."""


def share(count: int, number: int, parts: int) -> slice:
    """Return which of `count` things the share `number` of `parts` holds; shares differ by one at most."""
    return slice(count * number // parts, count * (number + 1) // parts)


def lanes_of(global_batch: int, *, shuffled: bool) -> int:
    """Return the number of lanes of a training epoch, over all processes.

    Args:
        global_batch: Samples in a global batch.
        shuffled: Whether the split was shuffled when it was written, as `alexnet-prep shard` does. Other tars
            are often sorted by class: then each batch takes one sample of as many places as it can.
    """
    return max(1, min(global_batch // (_PER_LANE if shuffled else 1), _MOST_LANES))


class TrainingOrder(Order):
    """A shuffled epoch of full global batches; each sample at most once.

    Only the remainder below a global batch is left out, another one in every epoch.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int,
        epoch: int,
        global_batch: int,
        *,
        lanes: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Permute the shards and cut their line into lanes.

        Args:
            sizes: Number of samples in each shard.
            seed: Seed of the order.
            epoch: Number of the epoch, counted from 0.
            global_batch: Samples in a batch of all processes; a multiple of `world_size`.
            lanes: Number of lanes over all processes, 1..global_batch; None for `lanes_of` a shuffled split.
            rank: Rank of the process, 0..world_size - 1.
            world_size: Number of processes.
        """
        self._seed, self._epoch = seed, epoch
        self._line = random_generator(seed, Purpose.SHARDS, epoch).permutation(len(sizes))
        self._ends = np.cumsum(np.asarray(sizes, np.int64)[self._line])
        self._begins = self._ends - np.asarray(sizes, np.int64)[self._line]
        self._total = int(self._ends[-1]) if len(sizes) else 0
        self.batches = self._total // global_batch
        self._start = int(random_generator(seed, Purpose.START, epoch).integers(max(self._total, 1)))
        count = lanes or lanes_of(global_batch, shuffled=True)
        # Positions of a batch at which the lanes begin, and the end.
        edges = -(-np.arange(count + 1) * global_batch // count)
        local = global_batch // world_size
        self._positions = rank * local + np.arange(local)
        lane = np.searchsorted(edges, self._positions, side="right") - 1
        self._lane_begin, self._lane_width = edges[lane], edges[lane + 1] - edges[lane]
        self._permuted: dict[int, Integers] = {}

    def batch(self, number: int) -> Samples:
        """Return the samples of this process's slice of global batch `number`."""
        line = self._line_positions(number)
        places = np.searchsorted(self._ends, line, side="right")
        offsets = line - self._begins[places]
        samples = np.empty_like(line)
        used = np.unique(places).tolist()
        self._permuted = {p: self._permuted[p] if p in self._permuted else self._permutation(p) for p in used}
        for place in used:
            here = places == place
            samples[here] = self._permuted[place][offsets[here]]
        return Samples(self._line[places], samples)

    def uses(self, start: int = 0) -> list[Use]:
        """Return the shards of this process's lanes, from batch `start` on."""
        found = []
        for at in np.unique(self._lane_begin, return_index=True)[1].tolist():
            # The samples of this lane that the process takes: some of a lane may be another process's.
            mine = self._positions[self._lane_begin == self._lane_begin[at]] - self._lane_begin[at]
            width = int(self._lane_width[at])
            first = self._start + self.batches * int(self._lane_begin[at])
            found += [
                Use(*batches, int(self._line[place]))
                for place, lo, hi in self._pieces(first + start * width, (self.batches - start) * width)
                if (batches := _batches_of(lo, hi, mine, width, start)) is not None
            ]
        return _merged(found)

    def part(self, number: int, parts: int) -> Self:
        """Return the order of a part of each batch."""
        found, rows = copy.copy(self), share(len(self._positions), number, parts)
        found._positions = self._positions[rows]
        found._lane_begin, found._lane_width = self._lane_begin[rows], self._lane_width[rows]
        found._permuted = {}
        return found

    def _line_positions(self, number: int) -> Integers:
        within = self._positions - self._lane_begin
        line = self._start + self.batches * self._lane_begin + number * self._lane_width + within
        return np.asarray(line % self._total, np.int64)

    def _pieces(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (place on the line, first, end) of each shard in `count` positions from `first` on.

        `first` and `end` count from 0 at the position `first`.
        """
        done = 0
        while done < count:
            position = (first + done) % self._total
            place = int(np.searchsorted(self._ends, position, side="right"))
            end = min(done + int(self._ends[place]) - position, count)
            yield place, done, end
            done = end

    def _permutation(self, place: int) -> Integers:
        size = int(self._ends[place] - self._begins[place])
        generator = random_generator(self._seed, Purpose.SAMPLES, self._epoch, int(self._line[place]))
        return generator.permutation(size)


def _batches_of(lo: int, hi: int, mine: Integers, width: int, start: int) -> tuple[int, int] | None:
    """Return the first and last batch that take one of the positions lo..hi - 1 of a lane, if any does.

    Args:
        lo: First position, counted from the lane's first sample of batch `start`.
        hi: Position after the last.
        mine: Which of the lane's `width` samples of a batch are taken, ascending.
        width: Samples that a batch takes of the lane.
        start: Number of the batch from which positions are counted.
    """
    first = lo // width if lo % width <= mine[-1] else lo // width + 1
    last = (hi - 1) // width if (hi - 1) % width >= mine[0] else (hi - 1) // width - 1
    return (start + first, start + last) if first <= last else None


def most_at_once(uses: Sequence[Use], ahead: int) -> int:
    """Return how many shards are in use at the same time, at most, if each is opened some batches ahead."""
    changes = [(use.first - ahead, 1) for use in uses] + [(use.last + 1, -1) for use in uses]
    return max(accumulate(change for _, change in sorted(changes)), default=0)


def _merged(uses: list[Use]) -> list[Use]:
    """Join the uses of a shard that follow or overlap each other: several lanes may begin in one shard."""
    found: list[Use] = []
    for use in sorted(uses, key=lambda use: (use.shard, use)):
        if found and found[-1].shard == use.shard and use.first <= found[-1].last + 1:
            found[-1] = found[-1]._replace(last=max(found[-1].last, use.last))
        else:
            found.append(use)
    return sorted(found)


class EvaluationOrder(Order):
    """All samples of a split, in order; whole batches that the processes take in turns."""

    def __init__(self, sizes: Sequence[int], batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        """Note the sizes.

        Args:
            sizes: Number of samples in each shard.
            batch_size: Samples per batch; the last batch of the split may have fewer.
            rank: Rank of the process, which takes the batches rank, rank + world_size, and so on.
            world_size: Number of processes.
        """
        self._ends = np.cumsum(np.asarray(sizes, np.int64))
        self._begins = self._ends - np.asarray(sizes, np.int64)
        self._total = int(self._ends[-1]) if len(sizes) else 0
        self._size, self._rank, self._world_size = batch_size, rank, world_size
        self._part = 0, 1
        everyone = -(-self._total // batch_size)
        self.batches = max(0, -(-(everyone - rank) // world_size))

    def batch(self, number: int) -> Samples:
        """Return the samples of this process's batch `number`."""
        first = (self._rank + number * self._world_size) * self._size
        positions = np.arange(first, min(first + self._size, self._total))
        positions = positions[share(len(positions), *self._part)]
        shards = np.searchsorted(self._ends, positions, side="right")
        return Samples(shards, positions - self._begins[shards])

    def uses(self, start: int = 0) -> list[Use]:
        """Return the shards of this process's batches from `start` on."""
        begins = (self._rank + np.arange(start, self.batches) * self._world_size) * self._size
        rows = [share(count, *self._part) for count in np.minimum(self._total - begins, self._size).tolist()]
        held = [number for number, row in enumerate(rows) if row.start < row.stop]
        first = begins[held] + np.array([rows[number].start for number in held], np.int64)
        last = begins[held] + np.array([rows[number].stop for number in held], np.int64) - 1
        # The first batch that ends in a shard or behind it, and the last that begins in it or before.
        one = np.searchsorted(last, self._begins)
        other = np.searchsorted(first, self._ends) - 1
        shards = np.flatnonzero((one <= other) & (self._begins < self._ends)).tolist()
        return [Use(start + int(one[shard]), start + int(other[shard]), shard) for shard in shards]

    def part(self, number: int, parts: int) -> Self:
        """Return the order of a part of each batch."""
        found = copy.copy(self)
        found._part = number, parts
        return found
