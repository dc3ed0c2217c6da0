"""What a run tells of itself while it goes on, and who listens."""

from collections.abc import Sequence
from typing import Protocol

from trainer.runs.records import Ending, EpochRow, StepRow, Weights


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
