"""What all processes decide together, in the same step: to stop, or to save."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from trainer.distributed.env import DistEnv

STOPPED = 75
"""Exit code of a run that was asked to end and left a checkpoint: BSD's EX_TEMPFAIL, "try again"."""

# Slurm's `--signal` names USR1 by custom; schedulers end a job by SIGTERM.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Consensus:
    """Lets every process know in the same step what any of them wants.

    Each call exchanges this process's wishes, and returns what all wished at the call before: the exchange
    travels beside a step's computing, on the CPU, and no process waits for it. So a wish comes true one
    step after it was made, everywhere.
    """

    def __init__(self, env: DistEnv) -> None:
        self._alone = env.world_size == 1
        self._group = None if self._alone else dist.new_group(backend="gloo")
        self._sent: tuple[torch.Tensor, Any] | None = None

    def __call__(self, *wishes: bool) -> list[bool]:
        """Exchange wishes, as many at every call, and return those of the call before."""
        if self._alone:
            return list(wishes)
        agreed = [False] * len(wishes)
        if self._sent is not None:
            values, work = self._sent
            work.wait()
            agreed = [bool(value) for value in values.tolist()]
        values = torch.tensor(wishes, dtype=torch.uint8)
        self._sent = values, dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def now(self, *wishes: bool) -> list[bool]:
        """Exchange wishes and wait for the others'."""
        self(*wishes)
        agreed = self(*wishes)
        self.finish()
        return agreed

    def finish(self) -> None:
        """Wait for the exchange that is under way."""
        if self._sent is not None:
            self._sent[1].wait()
            self._sent = None


class StopSignals:
    """Within the block, SIGTERM and SIGUSR1 do not end this process but are noted.

    Attributes:
        name: of the first that came, or "".
    """

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python hands signals to the first thread alone
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
