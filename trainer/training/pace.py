"""How fast an epoch goes, and what is left."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.loader.loader import Batch
from trainer.callbacks.base import StepRow
from trainer.training.progress import Reading

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
class Pace:
    """An epoch under way.

    Attributes:
        epoch: counted from 0.
        epochs: of the run.
        first, total: its updates that were done before this process began, and all of them.
        batch_size: pictures of an update, of all processes.
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
    rate: float
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

    def row(self, done: int, steps: int, reading: Reading, memory_mb: float) -> StepRow:
        """The moment after `done` updates of the epoch and `steps` of the run."""
        seconds = self.seconds
        return StepRow(
            epoch=self.epoch + 1,
            done=done,
            total=self.total,
            steps=steps,
            loss=reading.loss,
            top1=reading.correct / reading.images,
            rate=self.rate,
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
