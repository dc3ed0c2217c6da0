"""Decisions that all processes make in the same step: to stop, or to save a checkpoint."""

import os
import socket
from contextlib import suppress
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

from pipeline.errors import UsageError
from trainer.distributed.env import DistEnv, interface_towards

_EVERY_SECONDS = 0.15
"""Time between two exchanges; a request takes effect within twice as long."""
_MOST_STEPS = 64
"""Most steps between two exchanges, which bounds the time to the next one where steps become slower."""


class Consensus:
    """Share requests (booleans) between all processes, so that all act on them in the same step.

    In some steps a call starts an all-reduce (maximum, over gloo on the CPU) of the requests that this
    process made since the last one, and returns the result of the one before; in the steps between it
    returns no request. The exchange runs beside the steps' computation, and no process waits for it. It also
    agrees on the number of steps to the next one, about 0.15 s by the slowest process's clock, so that all
    processes exchange in the same steps. A single process sees its requests at once.
    """

    def __init__(self, env: DistEnv, every_seconds: float = _EVERY_SECONDS) -> None:
        """Connect the processes; all must call this.

        Args:
            env: This process's environment.
            every_seconds: Time between two exchanges; 0 exchanges in every call.
        """
        self._alone = env.world_size == 1
        if env.kind == "gpu" and env.world_size > env.local_world_size:
            _choose_interface(env)
        self._group = None if self._alone else dist.new_group(backend="gloo")
        self._every_seconds = every_seconds
        self._sent: tuple[torch.Tensor, Any] | None = None
        self._made: list[bool] = []  # requests since the last exchange
        self._calls, self._due = 0, 1  # calls since the last exchange, and at which the next is due
        self._since = monotonic()

    def __call__(self, *requests: bool) -> list[bool]:
        """Note requests; where an exchange is due, start it and return the result of the one before.

        Args:
            requests: This process's requests; their number and order are the same in every call.

        Returns:
            For each request, whether any process made it before the last exchange; all False where none is
            due. A request that is repeated until it is granted is granted once.
        """
        if self._alone:
            return list(requests)
        self._note(requests)
        self._calls += 1
        return self._exchange() if self._calls >= self._due else [False] * len(requests)

    def now(self, *requests: bool) -> list[bool]:
        """Exchange requests and wait for the result; every process must call this at the same point."""
        if self._alone:
            return list(requests)
        self._note(requests)
        before, now = self._exchange(), self._exchange()
        self.finish()
        return [one or other for one, other in zip(before, now, strict=True)]

    def finish(self) -> None:
        """Wait for the exchange in progress and drop its result."""
        if self._sent is not None:
            self._sent[1].wait()
            self._sent = None

    def _note(self, requests: tuple[bool, ...]) -> None:
        made = self._made or [False] * len(requests)
        self._made = [old or new for old, new in zip(made, requests, strict=True)]

    def _exchange(self) -> list[bool]:
        """Start an exchange, and return the result of the one before."""
        granted = [False] * len(self._made)
        if self._sent is not None:
            values, work = self._sent
            work.wait()
            *agreed, fewest = values.tolist()
            granted, self._due = [bool(value) for value in agreed], -fewest
        seconds = max(monotonic() - self._since, 1e-6)
        calls = min(max(int(self._every_seconds * self._calls / seconds), 1), _MOST_STEPS)
        asked = [made and not was for made, was in zip(self._made, granted, strict=True)]
        values = torch.tensor([*asked, -calls], dtype=torch.int64)  # the largest of -calls is of the fewest
        self._sent = values, dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._made = [False] * len(asked)
        self._calls, self._since = 0, monotonic()
        return granted


def _choose_interface(env: DistEnv) -> None:
    """Let gloo use the network interface by which this host reaches another.

    By default gloo uses the one that this host's name resolves to: where /etc/hosts gives it 127.0.1.1, that
    is the loopback, by which no other host can be reached, although NCCL has found the network.
    """
    mine = socket.gethostname()
    hosts = [mine] * env.world_size
    dist.all_gather_object(hosts, mine)
    other = next((host for host in hosts if host != mine), None)
    if other is None or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(UsageError):  # names that do not resolve: gloo's own choice may still be right
        if name := interface_towards(other):
            os.environ["GLOO_SOCKET_IFNAME"] = name
