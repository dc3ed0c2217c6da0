"""The callback interface of a training run."""

from trainer.runs.records import Ending, MetricsRow, StepMetrics, Weights


class Callback:
    """Base class of callbacks, which are called on rank 0 while a run goes on; its methods do nothing.

    Attributes:
        wants_weights: Whether to call `on_weights`, which costs two copies of the weights each epoch.
    """

    wants_weights = False

    def on_start(self, facts: dict[str, str]) -> None:
        """Called before the first step, with lines that describe the run: title → text."""

    def on_log(self, line: str) -> None:
        """Called with one line for the user."""

    def on_step(self, row: StepMetrics) -> None:
        """Called in an epoch every ten steps and after its last step."""

    def on_weights(self, weights: Weights) -> None:
        """Called after the last step of an epoch, before its validation, if `wants_weights`."""

    def on_validation(self, row: MetricsRow, epochs: int) -> None:
        """Called after a validation within an epoch.

        Args:
            row: Its metrics, and those of the epoch so far.
            epochs: Number of epochs of the run.
        """

    def on_epoch(self, row: MetricsRow, epochs: int, best: bool) -> None:
        """Called after an epoch and its checkpoint.

        Args:
            row: The epoch's metrics.
            epochs: Number of epochs of the run.
            best: Whether its validation top-1 is the best of all epochs so far; False without validation.
        """

    def on_end(self, how: Ending, line: str) -> None:
        """Called last, with how the run ended and the same as one line for the user.

        Not called where another process has taken over the run's folder, where nothing may be written then.
        """
