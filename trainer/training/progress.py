"""An epoch's sums, kept on the device and read without making it wait."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pipeline.loader.loader import Batch
from trainer.distributed.env import DistEnv
from trainer.runs.records import StepMetrics


@dataclass(frozen=True)
class Reading:
    """A meter's state at some update.

    Attributes:
        loss_sum, correct, images: of this process's batches in the epoch.
        loss: of the last batch.
        diverged: the first update of the run whose loss was not finite, or 0.
    """

    loss_sum: float
    correct: float
    images: float
    loss: float
    diverged: float


class RunningTotals:
    """Adds up the batches of this process."""

    def __init__(self, env: DistEnv) -> None:
        self._state = torch.zeros(5, dtype=torch.float64, device=env.device)
        self._on_gpu = env.kind == "gpu"
        self._copies = [torch.zeros(5, dtype=torch.float64, pin_memory=self._on_gpu) for _ in range(2)]
        self._copied: torch.cuda.Event | None = None

    def add(self, loss: Tensor, correct: Tensor, images: int, step: int) -> None:
        """Take in a batch's mean loss and correct guesses, both scalars; `step` counts from 1."""
        loss = loss.to(torch.float64)
        state = self._state
        state[0] += loss * images
        state[1] += correct
        state[2] += images
        state[3] = loss
        state[4] = torch.where((state[4] == 0) & ~torch.isfinite(loss), float(step), state[4])

    def peek(self) -> Reading | None:
        """The state without waiting for it: on a GPU that of the call before, None at the first."""
        if not self._on_gpu:
            return self.read()
        found = None
        if self._copied is not None:
            self._copied.synchronize()  # long past: updates lie between two calls
            found = Reading(*self._copies[0].tolist())
        self._copies.reverse()
        self._copies[0].copy_(self._state, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()
        return found

    def read(self) -> Reading:
        """The state as it is, once the device has come so far."""
        return Reading(*self._state.tolist())

    @property
    def sums(self) -> Tensor:
        """Loss, correct guesses and images: float64 (3,), a view."""
        return self._state[:3]

    def restart(self) -> None:
        """Begin another epoch."""
        self._state.zero_()
        self._copied = None


# The first updates are slower: they fill caches and queues.
_FEW = 10


@dataclass
class Wait:
    """Seconds that whoever iterates over `over` waits for batches."""

    seconds: float = 0.0

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.seconds += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


@dataclass
class EpochTimer:
    """An epoch under way.

    Attributes:
        epoch: counted from 0.
        epochs: of the run.
        first, total: its updates that were done before this process began, and all of them.
        batch_size: images of an update, of all processes.
        rate: learning rate of the last update.
        val_seconds: what the last validation took; 0 where there was none yet.
        started: `time.perf_counter` at its begin here.
        wait: for batches.
    """

    epoch: int
    epochs: int
    first: int
    total: int
    batch_size: int
    lr: float
    val_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    wait: Wait = field(default_factory=Wait)

    @property
    def seconds(self) -> float:
        """Since the begin here."""
        return time.perf_counter() - self.started

    def speed(self, done: int, seconds: float) -> float:
        """Images a second once `done` updates of the epoch are over."""
        return (done - self.first) * self.batch_size / seconds

    def row(self, done: int, steps: int, reading: Reading, memory_mb: float) -> StepMetrics:
        """The moment after `done` updates of the epoch and `steps` of the run."""
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
            data_wait=self.wait.seconds / seconds,
            memory_mb=memory_mb,
            seconds_left=self.seconds_left(done, seconds),
        )

    def seconds_left(self, done: int, seconds: float) -> float | None:
        """Of the run, if all goes on as fast as the epoch has in `seconds`; None after too few updates."""
        here = done - self.first
        if here < min(_FEW, self.total):
            return None
        epochs = self.epochs - self.epoch
        return (epochs * self.total - done) * seconds / here + epochs * self.val_seconds


def resident_mb() -> float:
    """Host memory of this process, MB; pages that it shares with others are counted too."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def device_mb(env: DistEnv) -> float:
    """What is in use on this process's GPU, MB, by torch, DALI and CUDA itself; 0 on the CPU."""
    if env.kind == "cpu":
        return 0.0
    free, total = torch.cuda.mem_get_info(env.device)
    return (total - free) / 1e6


def used_mb(env: DistEnv) -> float:
    """What limits a run: the most that torch held on the GPU, or host memory on the CPU, MB."""
    return torch.cuda.max_memory_allocated() / 1e6 if env.kind == "gpu" else resident_mb()
