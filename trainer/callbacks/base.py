"""The callback interface of a training run, and a list of callbacks that acts as one."""

from collections.abc import Sequence
from typing import Protocol

from trainer.runs.records import Ending, EpochMetrics, StepMetrics, Weights


class Callback(Protocol):
    """Called on rank 0 while a run goes on.

    Attributes:
        wants_weights: Whether to call `on_weights`, which costs two copies of the weights each epoch.
    """

    wants_weights: bool

    def on_start(self, facts: dict[str, str]) -> None:
        """Called before the first step, with lines that describe the run: title → text."""

    def on_log(self, line: str) -> None:
        """Called with one line for the user."""

    def on_step(self, row: StepMetrics) -> None:
        """Called in an epoch every ten steps and after its last step."""

    def on_epoch(self, row: EpochMetrics, epochs: int, best: bool) -> None:
        """Called after an epoch and its checkpoint.

        Args:
            row: The epoch's metrics.
            epochs: Number of epochs of the run.
            best: Whether its validation top-1 is the best so far.
        """

    def on_weights(self, weights: Weights) -> None:
        """Called after the last step of an epoch, before its validation; see `wants_weights`."""

    def on_end(self, how: Ending, line: str) -> None:
        """Called last, with how the run ended and the same as one line for the user."""


class Callbacks:
    """A list of callbacks that acts as one callback."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._all = callbacks
        self.wants_weights = any(callback.wants_weights for callback in callbacks)

    def on_start(self, facts: dict[str, str]) -> None:
        """Call `on_start` of every callback."""
        for callback in self._all:
            callback.on_start(facts)

    def on_log(self, line: str) -> None:
        """Call `on_log` of every callback."""
        for callback in self._all:
            callback.on_log(line)

    def on_step(self, row: StepMetrics) -> None:
        """Call `on_step` of every callback."""
        for callback in self._all:
            callback.on_step(row)

    def on_epoch(self, row: EpochMetrics, epochs: int, best: bool) -> None:
        """Call `on_epoch` of every callback."""
        for callback in self._all:
            callback.on_epoch(row, epochs, best)

    def on_weights(self, weights: Weights) -> None:
        """Call `on_weights` of every callback that wants weights."""
        for callback in self._all:
            if callback.wants_weights:
                callback.on_weights(weights)

    def on_end(self, how: Ending, line: str) -> None:
        """Call `on_end` of every callback."""
        for callback in self._all:
            callback.on_end(how, line)
