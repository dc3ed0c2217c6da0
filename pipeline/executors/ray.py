"""`RayExecutor`: tasks on a Ray cluster, or on a local Ray that is started for the job.

Every node needs this package with its dependencies at the same versions, and the source and output at the
same paths or URLs: a shared file system or a bucket. Ray runs a task again when its worker or node is lost.
That does no harm, because tasks write files atomically and the same task writes the same bytes.
"""

import logging
import os
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from pipeline.arguments import COUNT, check_record
from pipeline.errors import RunError, ToolkitError, UsageError
from pipeline.executors.base import NOT_REPORTED, Item, Result

# Limited, because an image may kill every worker that decodes it.
_RETRIES = 5
_TIMEOUT = 10.0  # seconds to connect


@dataclass(frozen=True)
class RayExecutor:
    """Runs tasks on Ray. A connection that the calling program has open already is used and kept.

    Attributes:
        address: address of a cluster, such as HOST:6379 or ray://HOST:10001; None starts Ray on this machine.
        workers: number of processes of a Ray that is started here; ignored with `address`.

    Raises:
        UsageError: `workers` is below 1.
    """

    address: str | None = None
    workers: int = 1
    reports_progress: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_record(self, workers=COUNT)

    def run(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        on_progress: Callable[[int], None] = NOT_REPORTED,  # never called: Ray tells only what is finished
    ) -> Generator[Result, None, None]:
        """See `pipeline.executors.base.Executor.run`.

        Raises:
            UsageError: Ray is not installed, or the cluster cannot be reached.
            RunError: a task's worker or node was lost six times.
        """
        if not items:
            return
        with _connected(self.address, self.workers) as ray:
            # SPREAD: a node that joins gets tasks at once, and a lost node loses few.
            task = ray.remote(_call).options(max_retries=_RETRIES, scheduling_strategy="SPREAD")
            pending = [task.remote(work, item) for item in items]
            while pending:
                done, pending = ray.wait(pending)
                yield _result(ray, done[0])


def _call(work: Callable[[Item], Result], item: Item) -> Result:
    return work(item)


@contextmanager
def _connected(address: str | None, workers: int) -> Iterator[Any]:
    """Context manager: connect to Ray, and disconnect at the end. An open connection is used and kept."""
    # Turn off Ray's usage reports, and its warning about a future default of this variable.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "running on Ray needs the package ray; pip install 'alexnet-toolkit[ray]'"
        ) from error
    if ray.is_initialized():  # by the notebook or program that calls us
        yield ray
        return
    settings: dict[str, Any] = {"address": address} if address else {"num_cpus": workers, "address": "local"}
    with TemporaryDirectory(prefix="alexnet-ray-", ignore_cleanup_errors=True) as empty:
        # Without a folder of this kind, workers would import from the current folder first.
        settings["runtime_env"] = {"working_dir": empty}
        _init(ray, settings, address)
        try:
            yield ray
        finally:
            ray.shutdown()


def _init(ray: Any, settings: dict[str, Any], address: str | None) -> None:
    try:
        _check_port(address)
        ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"cannot connect to Ray at {address or 'this machine'} ({reason}); start a cluster with "
            "`ray start --head` and name it with --ray-address, or leave the option out"
        ) from error


def _check_port(address: str | None) -> None:
    """Connect once to the address's port, because Ray itself would retry for minutes.

    Raises:
        OSError: the port cannot be reached.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_TIMEOUT).close()


def _result(ray: Any, reference: Any) -> Any:
    """Return a finished task's result, or raise its error as a ToolkitError where it is one."""
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
