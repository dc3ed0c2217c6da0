"""Decisions that all processes make in the same step: to stop, or to save a checkpoint."""

from typing import Any

import torch
import torch.distributed as dist

from trainer.distributed.env import DistEnv


class Consensus:
    """Share requests (booleans) between all processes, so that all act on them in the same step.

    Each call starts an all-reduce (logical or, over gloo on the CPU) of this process's requests, and returns
    the result of the call before. The exchange runs beside a step's computation and no process waits for
    it, so every process sees a request one step after it was made. A single process sees it at once.
    """

    def __init__(self, env: DistEnv) -> None:
        self._alone = env.world_size == 1
        self._group = None if self._alone else dist.new_group(backend="gloo")
        self._sent: tuple[torch.Tensor, Any] | None = None

    def __call__(self, *requests: bool) -> list[bool]:
        """Start an exchange and return the result of the one before.

        Args:
            requests: This process's requests; their number and order are the same in every call.

        Returns:
            For each request, whether any process made it in the call before; all False at the first call.
        """
        if self._alone:
            return list(requests)
        agreed = [False] * len(requests)
        if self._sent is not None:
            values, work = self._sent
            work.wait()
            agreed = [bool(value) for value in values.tolist()]
        values = torch.tensor(requests, dtype=torch.uint8)
        self._sent = values, dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def now(self, *requests: bool) -> list[bool]:
        """Exchange requests and wait for the result; every process must call this at the same point."""
        self(*requests)
        agreed = self(*requests)
        self.finish()
        return agreed

    def finish(self) -> None:
        """Wait for the exchange in progress and drop its result."""
        if self._sent is not None:
            self._sent[1].wait()
            self._sent = None
