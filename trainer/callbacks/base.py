"""What a run tells of itself while it goes on, and who listens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from trainer.runs.run_folder import EpochRow

Ending = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class StepRow:
    """A moment within an epoch.

    Attributes:
        epoch: 1 for the first.
        done, total: this epoch's updates so far, and all of them.
        steps: updates since the start of the run.
        loss: of a recent batch of the first process.
        top1: of the epoch's pictures so far, of the first process.
        rate: learning rate of the last update.
        images_per_second: training pictures of all processes, since the epoch began.
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
    rate: float
    images_per_second: float
    data_wait: float
    memory_mb: float
    seconds_left: float | None


@dataclass(frozen=True)
class Weights:
    """The net at the end of an epoch, on the CPU.

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


class Reporter(Protocol):
    """Is told on rank 0 how a run goes.

    Attributes:
        wants_weights: whether `weights` shall be called: the copies cost time.
    """

    wants_weights: bool

    def started(self, facts: dict[str, str]) -> None:
        """Describe the run before its first step."""

    def note(self, line: str) -> None:
        """Say something that the user should know."""

    def step(self, row: StepRow) -> None:
        """Report on an epoch under way, every few updates and after its last."""

    def epoch(self, row: EpochRow, epochs: int, best: bool) -> None:
        """Report a finished epoch."""

    def weights(self, weights: Weights) -> None:
        """Look at the net after an epoch."""

    def ended(self, how: Ending, line: str) -> None:
        """Say how the run ended, last of all."""


class Reporters:
    """Several reporters as one."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._all = reporters
        self.wants_weights = any(reporter.wants_weights for reporter in reporters)

    def started(self, facts: dict[str, str]) -> None:
        """Tell all."""
        for reporter in self._all:
            reporter.started(facts)

    def note(self, line: str) -> None:
        """Tell all."""
        for reporter in self._all:
            reporter.note(line)

    def step(self, row: StepRow) -> None:
        """Tell all."""
        for reporter in self._all:
            reporter.step(row)

    def epoch(self, row: EpochRow, epochs: int, best: bool) -> None:
        """Tell all."""
        for reporter in self._all:
            reporter.epoch(row, epochs, best)

    def weights(self, weights: Weights) -> None:
        """Tell those that want it."""
        for reporter in self._all:
            if reporter.wants_weights:
                reporter.weights(weights)

    def ended(self, how: Ending, line: str) -> None:
        """Tell all."""
        for reporter in self._all:
            reporter.ended(how, line)
