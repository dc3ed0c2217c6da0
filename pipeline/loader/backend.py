"""What a backend is given and what it returns: plans of batches, and their tensors.

Shapes: B batch, V views (10 for ten crops, else absent), C = 3, S crop.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.loader.augmentation import Draws
from pipeline.loader.order import Order, Samples
from pipeline.loader.stats import Sums

if TYPE_CHECKING:  # worker processes of the thread backend do without torch
    from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """One batch of one process.

    Attributes:
        epoch: Number of its epoch.
        number: Number of the batch in its epoch, as the order counts.
        samples: Shard and number in it of each of its B samples.
        draws: Its random numbers, a row for each sample; None for an `EvalView`.
    """

    epoch: int
    number: int
    samples: Samples
    draws: Draws | None

    def __len__(self) -> int:
        return len(self.samples.shards)

    def rows(self, begin: int, end: int) -> "Plan":
        """Return the plan of the rows `begin` to `end - 1`."""
        samples = Samples(*(column[begin:end] for column in self.samples))
        draws = self.draws.rows(begin, end) if self.draws else None
        return Plan(self.epoch, self.number, samples, draws)


@dataclass(frozen=True)
class OutputSettings:
    """Format of the images.

    Attributes:
        half: float16 instead of float32.
        channels_last: Stored as (S, S, C) in memory instead of (C, S, S).
    """

    half: bool = False
    channels_last: bool = False


class Result(NamedTuple):
    """A batch that a backend made.

    Attributes:
        images: float32 or float16 (B, C, S, S), or (B, V, C, S, S) for ten crops.
        labels: int64 (B,), on the CPU.
        keys: Key of each sample.
    """

    images: "Tensor"
    labels: NDArray[np.int64]
    keys: list[str]


class Backend(ABC):
    """Carries out plans, several at once, and returns their batches in the order of submission.

    Attributes:
        depth: Number of plans that should be under way at a time.
        sums: What the batches took; the loader adds `wait`, `ready`, `under_way` and `batches`.
    """

    depth: int
    sums: Sums

    @abstractmethod
    def begin(self, order: Order, start: int) -> None:
        """Start an epoch at batch `start`: from there on, plans come in the order of their numbers."""

    @abstractmethod
    def submit(self, plan: Plan) -> None:
        """Start to make a batch in the background."""

    @abstractmethod
    def take(self) -> Result:
        """Return the batch of the oldest plan, after waiting for it.

        Raises:
            SampleError: A sample cannot be read or decoded, or its label is not the number of a class.
            UsageError: The index of a shard cannot be read.
            RunError: A shard cannot be read, or the backend failed.
        """

    @abstractmethod
    def ready(self) -> float:
        """Return how many of the plans under way are done; NaN if the backend cannot tell."""

    @abstractmethod
    def drop(self) -> None:
        """Forget all plans that are under way, after waiting for what has begun, and give up the shards."""

    @abstractmethod
    def close(self) -> None:
        """Drop all plans and free threads, processes and memory."""
