"""What a run records: each update, each epoch, and how it ended."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Ending = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class StepMetrics:
    """A moment within an epoch.

    Attributes:
        epoch: 1 for the first.
        done, total: this epoch's updates so far, and all of them.
        steps: updates since the start of the run.
        loss: of a recent batch of the first process.
        top1: of the epoch's images so far, of the first process.
        rate: learning rate of the last update.
        images_per_second: training images of all processes, since the epoch began.
        data_wait: share of the time since the epoch began, 0..1, in which the first process waited for
            batches.
        memory_mb: memory of the first process: most that torch held on a GPU, resident on the CPU.
        seconds_left: of the run, as fast as it went so far; None where nothing can be said yet.
    """

    epoch: int
    done: int
    total: int
    steps: int
    loss: float
    top1: float
    lr: float
    images_per_second: float
    data_wait: float
    memory_mb: float
    seconds_left: float | None


@dataclass(frozen=True)
class Weights:
    """The network at the end of an epoch, on the CPU.

    Attributes:
        epoch: 1 for the first.
        steps: updates since the start of the run.
        weights: parameter name → its values.
        updates: parameter name → what the epoch's last update added.
    """

    epoch: int
    steps: int
    weights: dict[str, Tensor] = field(repr=False)
    updates: dict[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class EpochMetrics:
    """A line of metrics.jsonl.

    Attributes:
        epoch: 1 for the first.
        steps: updates since the start of the run.
        rate: learning rate of the epoch's last update.
        train_loss, train_top1: over the epoch's training batches, as they were augmented.
        val_loss, val_top1, val_top5: center crops of the validation split.
        train_seconds, val_seconds: wall time.
        images_per_second: training images over `train_seconds`, all processes together.
        data_wait: share of `train_seconds`, 0..1, in which the first process waited for batches.
    """

    epoch: int
    steps: int
    lr: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    val_top5: float
    train_seconds: float
    val_seconds: float
    images_per_second: float
    data_wait: float = 0.0


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: finished epochs.
        steps: updates so far.
        best_top1: best validation top-1 so far, 0..1.
    """

    epoch: int = 0
    steps: int = 0
    best_top1: float = -1.0
