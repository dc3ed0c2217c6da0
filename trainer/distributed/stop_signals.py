"""SIGTERM and SIGUSR1 end a run with a checkpoint and exit code 75."""

import signal
import threading
from types import FrameType
from typing import Any, Self

STOPPED = 75
"""Exit code of a run that was asked to stop and saved a checkpoint: BSD's EX_TEMPFAIL, "try again"."""


# Schedulers end a job with SIGTERM; USR1 is the customary signal of Slurm's `--signal` option.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Context manager that records SIGTERM and SIGUSR1 instead of letting them end this process.

    Attributes:
        name: Name of the first signal received, such as "SIGTERM"; "" before any.
    """

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals to the main thread only
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Record a signal; the handler of both within the block."""
        self.name = self.name or signal.Signals(number).name
