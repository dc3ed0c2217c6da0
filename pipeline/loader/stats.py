"""What a loader does: sums that it and its backend keep, and snapshots of them for whoever watches."""

import math
from dataclasses import asdict, dataclass, field
from time import perf_counter


@dataclass(frozen=True)
class LoaderStats:
    """Means over some batches: all since a loader began, or those between two snapshots, `later - earlier`.

    Seconds of reading, decoding and augmenting are summed over all threads, so they may exceed the time that
    passed. DALI tells neither what decoding and augmenting take nor which batches are ready.

    Attributes:
        batches: Number of these batches; without any, all means are 0.
        read: Seconds per batch for reading the encoded images, waiting for fetched shards, and feeding DALI.
        decode: Seconds per batch for decoding; None with DALI.
        augment: Seconds per batch for cutting, mirroring, normalizing and a transform; None with DALI, and
            where the GPU does it.
        wait: Seconds for which the consumer waited for a batch.
        ready: Batches that were ready when the consumer asked for one; None with DALI.
        under_way: Batches that were begun by then, ready or not.
    """

    batches: int
    read: float
    decode: float | None
    augment: float | None
    wait: float
    ready: float | None
    under_way: float

    def __sub__(self, earlier: "LoaderStats") -> "LoaderStats":
        """Return the means of the batches after an earlier snapshot of the same loader."""

        def total(name: str) -> float:
            now, was = getattr(self, name), getattr(earlier, name)
            return math.nan if now is None or was is None else now * self.batches - was * earlier.batches

        batches = self.batches - earlier.batches
        return Sums(batches, **{name: total(name) for name in list(asdict(self))[1:]}).stats()


@dataclass
class Sums:
    """Sums over the batches so far, in the units of `LoaderStats`; NaN for what a backend cannot tell."""

    batches: int = 0
    read: float = 0.0
    decode: float = 0.0
    augment: float = 0.0
    wait: float = 0.0
    ready: float = 0.0
    under_way: float = 0.0

    def add_work(self, other: "Sums") -> None:
        """Add what reading, decoding and augmenting other rows took."""
        self.read += other.read
        self.decode += other.decode
        self.augment += other.augment

    def stats(self) -> LoaderStats:
        """Return the means per batch."""
        count = max(self.batches, 1)

        def known(total: float) -> float | None:
            return None if math.isnan(total) else total / count

        return LoaderStats(
            batches=self.batches,
            read=self.read / count,
            decode=known(self.decode),
            augment=known(self.augment),
            wait=self.wait / count,
            ready=known(self.ready),
            under_way=self.under_way / count,
        )


@dataclass
class Stopwatch:
    """Adds the time since its last lap to one of `Sums`."""

    sums: Sums
    _since: float = field(default_factory=lambda: perf_counter())

    def lap(self, name: str) -> None:
        """Add the seconds since the last lap to the sum `name`."""
        now = perf_counter()
        setattr(self.sums, name, getattr(self.sums, name) + now - self._since)
        self._since = now
