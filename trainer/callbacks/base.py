"""What a run tells of itself while it goes on, and who listens."""

from collections.abc import Sequence
from typing import Protocol

from trainer.runs.records import Ending, EpochMetrics, StepMetrics, Weights


class Callback(Protocol):
    """Is told on rank 0 how a run goes.

    Attributes:
        wants_weights: whether `weights` shall be called: the copies cost time.
    """

    wants_weights: bool

    def on_start(self, facts: dict[str, str]) -> None:
        """Describe the run before its first step."""

    def on_log(self, line: str) -> None:
        """Say something that the user should know."""

    def on_step(self, row: StepMetrics) -> None:
        """Report on an epoch under way, every few updates and after its last."""

    def on_epoch(self, row: EpochMetrics, epochs: int, best: bool) -> None:
        """Report a finished epoch."""

    def on_weights(self, weights: Weights) -> None:
        """Look at the network after an epoch."""

    def on_end(self, how: Ending, line: str) -> None:
        """Say how the run ended, last of all."""


class Callbacks:
    """Several reporters as one."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._all = callbacks
        self.wants_weights = any(callback.wants_weights for callback in callbacks)

    def on_start(self, facts: dict[str, str]) -> None:
        """Tell all."""
        for callback in self._all:
            callback.on_start(facts)

    def on_log(self, line: str) -> None:
        """Tell all."""
        for callback in self._all:
            callback.on_log(line)

    def on_step(self, row: StepMetrics) -> None:
        """Tell all."""
        for callback in self._all:
            callback.on_step(row)

    def on_epoch(self, row: EpochMetrics, epochs: int, best: bool) -> None:
        """Tell all."""
        for callback in self._all:
            callback.on_epoch(row, epochs, best)

    def on_weights(self, weights: Weights) -> None:
        """Tell those that want it."""
        for callback in self._all:
            if callback.wants_weights:
                callback.on_weights(weights)

    def on_end(self, how: Ending, line: str) -> None:
        """Tell all."""
        for callback in self._all:
            callback.on_end(how, line)
