"""What a backend is given and what it returns: plans of batches, and their tensors.

Shapes: B batch, V views (10 for ten crops, else absent), C = 3, S crop.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.loader.augmentation import Draws
from pipeline.loader.live_shards import OpenShard
from pipeline.loader.stats import Sums


class Source(NamedTuple):
    """Where a sample is stored: its shard, and its number in it."""

    shard: OpenShard
    sample: int


@dataclass(frozen=True)
class Plan:
    """One batch of one process.

    Attributes:
        sources: Where its B samples are stored, in order.
        positions: int64 (B,), position of each in the split.
        draws: Its random numbers, a row for each sample; None for an `EvalView`.
    """

    sources: Sequence[Source]
    positions: NDArray[np.int64]
    draws: Draws | None


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
    """

    images: Tensor
    labels: NDArray[np.int64]


class SampleError(Exception):
    """A sample that cannot be read or decoded; the exception that says why is its cause."""

    def __init__(self, source: Source, problem: str) -> None:
        """Name the sample, and its problem in a few words."""
        super().__init__(problem)
        self.source, self.problem = source, problem


class Backend(ABC):
    """Carries out plans, several at once, and returns their batches in the order of submission.

    Attributes:
        depth: Number of plans that should be under way at a time.
        sums: What the batches took; the loader adds `wait`, `ready`, `under_way` and `batches`.
    """

    depth: int
    sums: Sums

    @abstractmethod
    def submit(self, plan: Plan) -> None:
        """Start to make a batch in the background."""

    @abstractmethod
    def take(self) -> tuple[Plan, Result]:
        """Return the oldest plan and its batch, after waiting for it.

        Raises:
            SampleError: A sample cannot be read or decoded.
        """

    @abstractmethod
    def ready(self) -> float:
        """Return how many of the plans under way are done; NaN if the backend cannot tell."""

    @abstractmethod
    def drop(self) -> None:
        """Forget all plans that are under way, after waiting for what has begun."""

    @abstractmethod
    def close(self) -> None:
        """Drop all plans and free threads and memory."""
