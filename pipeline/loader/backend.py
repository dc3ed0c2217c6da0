"""What a backend is given and what it returns: plans of batches, and their tensors.

Shapes: B batch, V views (10 for ten crops, else absent), C = 3, S crop.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.loader.augmentation import Draws
from pipeline.loader.live_shards import OpenShard


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


@dataclass
class Times:
    """Seconds that batches took, summed over all threads.

    Attributes:
        read: Opening and reading encoded images.
        decode, augment: Decoding them, and cutting and normalizing the pixels; 0 with DALI, which is silent.
        wait: How long the consumer waited for batches.
        batches: Number of batches given to the consumer.
        ready: Batches that were ready when one was asked for, summed over all batches; 0 with DALI.
    """

    read: float = 0.0
    decode: float = 0.0
    augment: float = 0.0
    wait: float = 0.0
    batches: int = 0
    ready: int = 0


class Backend(ABC):
    """Carries out plans, several at once, and returns their batches in the order of submission.

    Attributes:
        depth: Number of plans that should be under way at a time.
        times: What the batches took.
    """

    depth: int
    times: Times

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
    def drop(self) -> None:
        """Forget all plans that are under way, after waiting for what has begun."""

    @abstractmethod
    def close(self) -> None:
        """Drop all plans and free threads and memory."""


@dataclass
class Stopwatch:
    """Adds the time since its last lap to a figure of `Times`."""

    times: Times
    _since: float = field(default_factory=perf_counter)

    def lap(self, figure: str) -> None:
        """Add the seconds since the last lap to `figure`."""
        now = perf_counter()
        setattr(self.times, figure, getattr(self.times, figure) + now - self._since)
        self._since = now
