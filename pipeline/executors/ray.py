"""Tasks on a Ray cluster, or on a local one that is started for the job.

Every node needs this package at the same versions, and the source and output under the same paths or URLs:
a shared file system or a bucket. Ray runs a task again when its worker or node is lost; the tasks write
whole files of the same bytes, so that a second try does no harm.
"""

import logging
import os
import socket
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.errors import RunError, ToolkitError, UsageError
from pipeline.executors.base import Item, OnProgress, Result

# An image that kills every worker that touches it must not do so for ever.
_RETRIES = 5
_PATIENCE = 10.0  # seconds


@dataclass(frozen=True)
class RayExecutor:
    """Ray, at `address`, or started on this machine with `workers` processes where it is None."""

    address: str | None = None
    workers: int = 1
    reports_progress: ClassVar[bool] = False

    def run(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        on_progress: OnProgress | None = None,  # finished tasks are all that is known
    ) -> Generator[Result, None, None]:
        """See `pipeline.executors.base.Executor.run`.

        Raises:
            UsageError: Ray is not installed, or no cluster answers at the address.
            RunError: a task's worker or node was lost again and again.
        """
        if not items:
            return
        ray = _connect(self.address, self.workers)
        try:
            # Spread: a node more takes its share at once, and a node lost takes little with it.
            task = ray.remote(_call).options(max_retries=_RETRIES, scheduling_strategy="SPREAD")
            pending = [task.remote(work, item) for item in items]
            while pending:
                done, pending = ray.wait(pending)
                yield _result(ray, done[0])
        finally:
            ray.shutdown()


def _call(work: Callable[[Item], Result], item: Item) -> Result:
    return work(item)


def _connect(address: str | None, workers: int) -> Any:
    # Usage reports to Ray's makers are off, and so is a warning about its own future defaults.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray; pip install 'alexnet-toolkit[ray]'") from error
    settings: dict[str, Any] = {"address": address} if address else {"num_cpus": workers, "address": "local"}
    try:
        _knock(address)
        ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"no Ray cluster answers at {address or 'this machine'} ({reason}); start one with "
            "`ray start --head` and name it with --ray-address, or leave the option out"
        ) from error
    return ray


def _knock(address: str | None) -> None:
    """Ray itself would try for minutes to reach a port that nobody listens at.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ToolkitError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"a task's worker or node was lost {_RETRIES + 1} times ({type(error).__name__}: {reason}); "
            "finished shards are kept: run the same command again"
        ) from error
