"""Records of a run: metrics within an epoch and of each epoch, weights, progress; durations as text."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # commands show these records without torch
    from torch import Tensor

Ending = Literal["finished", "stopped", "failed"]
"""How a run ended."""


@dataclass(frozen=True)
class StepMetrics:
    """Metrics within an epoch.

    Attributes:
        epoch: Epoch, counted from 1.
        done, total: Steps of this epoch so far, and all its steps.
        steps: Steps since the start of the run.
        loss: Mean loss of a recent batch of process 0.
        top1: Accuracy, 0..1, over process 0's images of the epoch so far.
        lr: Learning rate of the last step.
        images_per_second: Training images of all processes per second, since the epoch began.
        data_wait: Share, 0..1, of the time since the epoch began in which process 0 waited for batches.
        memory_mb: Memory of process 0 in MB: torch's peak on a GPU, resident memory on the CPU.
        gpu_rest_mb: Used memory of process 0's GPU outside torch's in MB, of DALI, CUDA and other programs;
            0 on the CPU.
        seconds_left: Estimated seconds left of the run; None after too few steps.
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
    gpu_rest_mb: float
    seconds_left: float | None


@dataclass(frozen=True)
class Weights:
    """Weights at the end of an epoch, copied to the CPU.

    Attributes:
        epoch: Epoch, counted from 1.
        steps: Steps since the start of the run.
        weights: Parameter name → values.
        updates: Parameter name → difference that the epoch's last step made.
    """

    epoch: int
    steps: int
    weights: "dict[str, Tensor]" = field(repr=False)
    updates: "dict[str, Tensor]" = field(repr=False)


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of an epoch, a line of metrics.jsonl.

    Attributes:
        epoch: Epoch, counted from 1.
        steps: Steps since the start of the run.
        lr: Learning rate of the epoch's last step.
        train_loss, train_top1: Mean loss and accuracy, 0..1, over the epoch's augmented training batches.
        val_loss, val_top1, val_top5: Mean loss and accuracies, 0..1, on center crops of the validation split,
            in float32.
        train_seconds, val_seconds: Wall time.
        images_per_second: Training images of all processes per second of `train_seconds`; 0 for an epoch
            that was only validated.
        data_wait: Share of `train_seconds`, 0..1, in which process 0 waited for batches.
        overflows: Steps that changed nothing, because float16 gradients overflowed; training's loss and
            accuracy leave them out.
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
    overflows: int = 0


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: Number of finished epochs.
        steps: Steps so far.
        best_top1: Best validation top-1 so far, 0..1; -1 before the first validation.
        overflows: Steps of the epoch so far that changed nothing, because float16 gradients overflowed.
        overflows_in_a_row: Such steps since the last other one.
    """

    epoch: int = 0
    steps: int = 0
    best_top1: float = -1.0
    overflows: int = 0
    overflows_in_a_row: int = 0

    def add_step(self, *, overflowed: bool) -> None:
        """Count a step, and whether it overflowed."""
        self.steps += 1
        self.overflows += overflowed
        self.overflows_in_a_row = self.overflows_in_a_row + 1 if overflowed else 0


def in_words(seconds: float) -> str:
    """Format a duration with the two largest units at most: 45 s, 12 min, 3 h 20 min, 5 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
