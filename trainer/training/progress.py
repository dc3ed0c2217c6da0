"""Progress of an epoch: running totals on the device, timing, and memory in use."""

import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from pipeline.loader.loader import Batch, Loader
from pipeline.loader.stats import LoaderStats
from trainer.data import RepeatedBatch
from trainer.distributed.env import DistEnv
from trainer.evaluation.metrics import Metrics
from trainer.runs.records import MetricsRow, Progress, RowKind, StepMetrics


@dataclass(frozen=True)
class Reading:
    """A copy of `RunningTotals` on the host.

    Attributes:
        loss_sum: Sum over this process's images of the epoch of their losses.
        correct: Number of these images whose top-1 prediction is right.
        images: Number of these images.
        loss: Mean loss of the last batch.
        diverged: The first step of the epoch, counted from the run's start, whose loss was not finite; or 0.
    """

    loss_sum: float
    correct: float
    images: float
    loss: float
    diverged: float


class RunningTotals:
    """Adds up loss and top-1 over this process's batches of an epoch, on the device."""

    def __init__(self, env: DistEnv) -> None:
        self._state = torch.zeros(5, dtype=torch.float64, device=env.device)
        self._on_gpu = env.kind == "gpu"
        self._copies = [torch.zeros(5, dtype=torch.float64, pin_memory=self._on_gpu) for _ in range(2)]
        self._copied: torch.cuda.Event | None = None

    def add(self, loss: Tensor, correct: Tensor, images: int, step: int) -> None:
        """Add a batch, without waiting for the device.

        Args:
            loss: Mean loss of the batch, a scalar.
            correct: Number of correct top-1 predictions, a scalar.
            images: Number of images in the batch.
            step: Step of the run, counted from 1.
        """
        loss = loss.to(torch.float64)
        state = self._state
        state[0] += loss * images
        state[1] += correct
        state[2] += images
        state[3] = loss
        state[4] = torch.where((state[4] == 0) & ~torch.isfinite(loss), float(step), state[4])

    def peek(self) -> Reading | None:
        """Return the totals without waiting for a GPU: those at the call before, None at the first call."""
        if not self._on_gpu:
            return self.read()
        previous = None
        if self._copied is not None:
            self._copied.synchronize()  # long done: steps lie between two calls
            previous = Reading(*self._copies[0].tolist())
        self._copies.reverse()
        self._copies[0].copy_(self._state, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()
        return previous

    def read(self) -> Reading:
        """Return the current totals; waits for the device."""
        return Reading(*self._state.tolist())

    @property
    def sums(self) -> Tensor:
        """Loss sum, correct predictions, images: float64 (3,), a view of the totals on the device."""
        return self._state[:3]

    def restart(self) -> None:
        """Reset the totals for another epoch."""
        self._state.zero_()
        self._copied = None


# Steps before the remaining time is estimated: the first ones are slower, as they fill caches and queues.
_FIRST_STEPS = 10


@dataclass
class EpochTimer:
    """Timing of an epoch in progress.

    Attributes:
        epoch: Epoch, counted from 0.
        epochs: Number of epochs of the run.
        first: Steps of the epoch done, or left out, before this process began or resumed it.
        total: All steps of the epoch.
        batch_size: Global batch size.
        lr: Learning rate of the last step.
        val_seconds: Duration of the last validation; 0 before the first.
        val_steps: Steps between two validations within epochs; None where there are none.
        started: `time.perf_counter()` when this process began or resumed the epoch.
        validated: Seconds spent on validations since `started`.
        waited: Seconds for which this process waited for batches since `started`.
        loader: Returns what this process's loader did since `started`; None where one batch is repeated.
    """

    epoch: int
    epochs: int
    first: int
    total: int
    batch_size: int
    lr: float
    val_seconds: float = 0.0
    val_steps: int | None = None
    started: float = field(default_factory=time.perf_counter)
    validated: float = 0.0
    waited: float = 0.0
    loader: Callable[[], LoaderStats | None] = lambda: None

    def batches(self, loader: Loader | RepeatedBatch) -> Iterator[Batch]:
        """Yield a loader's batches, and count the time that each takes to arrive as waited."""
        if isinstance(loader, Loader):
            before = loader.stats()
            self.loader = lambda: loader.stats() - before
        iterator = iter(loader)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Time the block as a validation, not as training."""
        started = time.perf_counter()
        yield
        self.val_seconds = time.perf_counter() - started
        self.validated += self.val_seconds

    @property
    def seconds(self) -> float:
        """Seconds of training since `started`."""
        return time.perf_counter() - self.started - self.validated

    def speed(self, done: int, seconds: float) -> float:
        """Return images per second of all processes, after `seconds` of training and `done` steps."""
        return (done - self.first) * self.batch_size / seconds

    def row(self, done: int, steps: int, reading: Reading, memory: "MemoryUse") -> StepMetrics:
        """Build the metrics after `done` steps of the epoch.

        Args:
            done: Steps of the epoch.
            steps: Steps of the run.
            reading: Totals of this process, at this step or an earlier one.
            memory: Memory in use.
        """
        seconds = self.seconds
        return StepMetrics(
            epoch=self.epoch + 1,
            done=done,
            total=self.total,
            steps=steps,
            loss=reading.loss,
            top1=reading.correct / reading.images,
            lr=self.lr,
            images_per_second=self.speed(done, seconds),
            data_wait=self.waited / seconds,
            memory_mb=memory.mb,
            gpu_rest_mb=memory.rest_mb,
            seconds_left=self.seconds_left(done, seconds),
            loader=self.loader(),
        )

    def metrics_row(
        self,
        kind: RowKind,
        done: int,
        progress: Progress,
        totals: Sequence[float],
        validated: Metrics | None,
    ) -> MetricsRow:
        """Build the metrics of the epoch, or of its steps so far.

        Args:
            kind: Whether the epoch is over, or was validated within.
            done: Steps of the epoch.
            progress: The run's progress; the epoch is not yet counted.
            totals: Loss sum, correct predictions and images of all processes, see `RunningTotals.sums`.
            validated: Metrics of the validation, which the timer has timed; None without one.
        """
        loss_sum, correct, images = totals
        trained = self.seconds
        return MetricsRow(
            kind=kind,
            epoch=self.epoch + 1,
            epochs_done=self.epoch + done / self.total,
            steps=progress.steps,
            lr=self.lr,
            train_loss=loss_sum / images if images else None,
            train_top1=correct / images if images else None,
            val_loss=validated.loss if validated else None,
            val_top1=validated.top1 if validated else None,
            val_top5=validated.top5 if validated else None,
            train_seconds=trained,
            val_seconds=self.val_seconds if validated else 0.0,
            images_per_second=self.speed(done, trained),
            data_wait=self.waited / trained,
            overflows=progress.overflows,
            loader=self.loader(),
        )

    def seconds_left(self, done: int, seconds: float) -> float | None:
        """Estimate the seconds left of the run at this epoch's speed; None after fewer than ten steps."""
        here = done - self.first
        if here < min(_FIRST_STEPS, self.total):
            return None
        epochs = self.epochs - self.epoch
        steps = epochs * self.total - done
        validations = epochs + (steps // self.val_steps if self.val_steps else 0)
        return steps * seconds / here + validations * self.val_seconds


def resident_mb() -> float:
    """Return the resident host memory of this process in MB (10^6 bytes), shared pages included.

    Where there is no /proc, as on macOS, it is the largest so far.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def device_mb(env: DistEnv) -> float:
    """Return the used memory of this process's GPU in MB, by torch, DALI, CUDA and others; 0 on the CPU."""
    if env.kind == "cpu":
        return 0.0
    free, total = torch.cuda.mem_get_info(env.device)
    return (total - free) / 1e6


# cudaMemGetInfo takes some tenths of a millisecond, and what it counts besides torch's memory changes rarely.
_DEVICE_SECONDS = 1.0


class MemoryUse:
    """Memory of a process in MB: on the CPU its resident memory, on a GPU that of torch and the rest.

    Attributes:
        mb: Resident memory, or torch's peak on the GPU.
        rest_mb: Used memory of the GPU outside torch's: DALI's, CUDA's and other programs'; 0 on the CPU.
    """

    def __init__(self, env: DistEnv) -> None:
        self._env = env
        self._at = -math.inf
        self.mb = self.rest_mb = 0.0

    def read(self) -> Self:
        """Measure; the rest of the GPU at most once a second."""
        if self._env.kind == "cpu":
            self.mb = resident_mb()
            return self
        self.mb = torch.cuda.max_memory_allocated(self._env.device) / 1e6
        if time.monotonic() - self._at > _DEVICE_SECONDS:
            self._at = time.monotonic()
            self.rest_mb = device_mb(self._env) - torch.cuda.memory_reserved(self._env.device) / 1e6
        return self
