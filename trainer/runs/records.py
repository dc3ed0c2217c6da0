"""Records of a run: how it validates, metrics, weights, progress; durations as text."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipeline.arguments import COUNT, check_record
from pipeline.errors import UsageError
from pipeline.loader.stats import LoaderStats

if TYPE_CHECKING:  # commands show these records without torch
    from torch import Tensor

Ending = Literal["finished", "stopped", "failed"]
"""How a run ended."""

# The share of the time from which waiting is worth a word, and the batches before anything can be said: the
# first ones of an epoch are waited for in any case.
_INPUT_BOUND = 0.1
_FIRST_BATCHES = 10

RowKind = Literal["epoch", "validation"]
"""What a line of metrics.jsonl is about: a whole epoch, or a validation within one."""


@dataclass(frozen=True)
class Validation:
    """When a run validates, and when it ends for want of improvement. Kept in run.json and in checkpoints.

    Attributes:
        enabled: Whether to validate; without it, as without a validation split, the best checkpoint is the
            last one.
        every_steps: Steps (of the run) between two validations within epochs, besides those at the ends of
            epochs; None for these alone.
        patience: Validations in a row, of either kind, without a top-1 above all earlier ones, after which
            the run ends; None for no limit.

    Raises:
        UsageError: A number is below 1, or given though nothing is validated.
    """

    enabled: bool = True
    every_steps: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        check_record(self, every_steps=COUNT, patience=COUNT)
        if self.options and not self.enabled:
            raise UsageError(
                f"--no-val leaves out the validation that {self.options[0]} needs; give one of them"
            )

    def __str__(self) -> str:
        return ", ".join(["at the ends of epochs", *self.options]) if self.enabled else "--no-val"

    @property
    def options(self) -> list[str]:
        """The given options that need validation, as on the command line."""
        named = {"--val-every-steps": self.every_steps, "--patience": self.patience}
        return [f"{name} {number}" for name, number in named.items() if number is not None]


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
        loader: What process 0's loader did since the epoch began; None where one batch is repeated.
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
    loader: LoaderStats | None = None

    @property
    def input_bound(self) -> bool:
        """Whether the loader limits the speed.

        In the epoch so far, of ten batches or more, process 0 waited for at least a tenth of the time, and
        less than one batch was ready on average when it asked for one (which DALI does not tell).
        """
        loader = self.loader
        if loader is None or loader.batches < _FIRST_BATCHES or self.data_wait < _INPUT_BOUND:
            return False
        return loader.ready is None or loader.ready < 1


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
class MetricsRow:
    """A line of metrics.jsonl: metrics of an epoch, or of a validation within one.

    For a validation, what is said of the epoch holds for its steps so far.

    Attributes:
        kind: "epoch" or "validation".
        epoch: Epoch, counted from 1.
        epochs_done: Epochs trained so far, such as 1.5 in the middle of the second.
        steps: Steps since the start of the run.
        lr: Learning rate of the last step.
        train_loss, train_top1: Mean loss and accuracy, 0..1, over the epoch's augmented training batches;
            None where all of them overflowed.
        val_loss, val_top1, val_top5: Mean loss and accuracies, 0..1, on center crops of the validation split,
            in float32; None in a run without validation.
        train_seconds: Wall time of the epoch's training.
        val_seconds: Wall time of this validation; 0 without one.
        images_per_second: Training images of all processes per second of `train_seconds`; 0 for an epoch
            that was only validated.
        data_wait: Share of `train_seconds`, 0..1, in which process 0 waited for batches.
        overflows: Steps of the epoch that changed nothing, because float16 gradients overflowed; training's
            loss and accuracy leave them out.
        loader: What process 0's loader did in the epoch; None where one batch is repeated.
    """

    kind: RowKind
    epoch: int
    epochs_done: float
    steps: int
    lr: float
    train_loss: float | None
    train_top1: float | None
    val_loss: float | None
    val_top1: float | None
    val_top5: float | None
    train_seconds: float
    val_seconds: float
    images_per_second: float
    data_wait: float = 0.0
    overflows: int = 0
    loader: LoaderStats | None = None


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: Number of finished epochs.
        steps: Steps so far.
        best_top1: Best validation top-1, 0..1, at the end of an epoch so far; -1 before the first.
        overflows: Steps of the epoch so far that changed nothing, because float16 gradients overflowed.
        overflows_in_a_row: Such steps since the last other one.
        highest_top1: Best top-1, 0..1, of all validations so far, within epochs too; -1 before the first.
        unimproved: Validations since then, in a row.
    """

    epoch: int = 0
    steps: int = 0
    best_top1: float = -1.0
    overflows: int = 0
    overflows_in_a_row: int = 0
    highest_top1: float = -1.0
    unimproved: int = 0

    def add_step(self, *, overflowed: bool) -> None:
        """Count a step, and whether it overflowed."""
        self.steps += 1
        self.overflows += overflowed
        self.overflows_in_a_row = self.overflows_in_a_row + 1 if overflowed else 0

    def add_validation(self, top1: float) -> None:
        """Count a validation of either kind, by its top-1, 0..1."""
        self.unimproved = 0 if top1 > self.highest_top1 else self.unimproved + 1
        self.highest_top1 = max(self.highest_top1, top1)


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
