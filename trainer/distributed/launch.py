"""Launch processes on this host with torch elastic, or be one that torchrun or srun has launched."""

import logging
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _abort_process_group
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.arguments import checked
from pipeline.errors import RunError, ToolkitError
from pipeline.executors.children import sheltered_children
from pipeline.host import keep_freed_memory, refuse_without_semaphores
from trainer.distributed.env import (
    DistEnv,
    Kind,
    Processes,
    interface_towards,
    launched_outside,
    read_dist_env,
)
from trainer.distributed.failures import (
    LostPeerError,
    announce_failure,
    as_known,
    error_from_text,
    error_to_text,
)
from trainer.distributed.rendezvous import meet
from trainer.distributed.stop_signals import StopSignals

T = TypeVar("T")

# When one process fails, collectives fail in the others with one of these texts. Such a secondary error is
# held back until the launcher, which polls every 0.2 s, has seen the first failure and ends all processes.
_LOST_PEER = ("closed by peer", "reset by peer", "Broken pipe", "remote process", "Socket Timeout")
_ECHO_SECONDS = 6.0
# Longer than the watchdog waits for a silent process, and than the checksums of all shards take.
_COLLECTIVE_TIMEOUT = timedelta(hours=6)
# A SIGTERM that comes later than this after the first signal ends all processes at once.
_AGAIN_SECONDS = 1.0


@checked(max_restarts=(0, math.inf))
def launch(processes: Processes, entry: Callable[..., T], *args: Any, max_restarts: int = 0) -> T | None:
    """Run `entry(env, *args)` in every process and return the result of the first process on this host.

    A single process without restarts runs `entry` itself; otherwise torch's elastic launcher spawns workers.
    Under torchrun or srun this process is already a worker: it runs `entry` and returns its own result.
    SIGTERM and SIGUSR1 are forwarded to the workers, which may take their time to end.

    Args:
        processes: Kind and number of processes on this host.
        entry: Picklable function that gets the process's `DistEnv` first.
        args: Further picklable arguments of `entry`.
        max_restarts: How often all processes are restarted after some were lost. Under torchrun its own
            option of this name counts instead.

    Raises:
        ToolkitError: An error that a worker raised, with its message and exit code.
        RunError: A worker was killed, this process got a signal to end, or /dev/shm cannot be written.
        RuntimeError: Any other exception of a worker, with its traceback.
        KeyboardInterrupt: Ctrl-C, as in a single process.
    """
    if launched_outside():
        return _worker(entry, processes.kind, args)
    if processes.count == 1 and not max_restarts:
        if processes.kind == "cpu":
            keep_freed_memory()
        return entry(DistEnv(kind=processes.kind), *args)
    refuse_without_semaphores()
    _silence("torch.distributed.elastic", "torch.multiprocessing")  # failures are raised below
    with (
        # A shared store would still hold the addresses of lost processes after a restart (torch 2.13).
        _variables(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1" if max_restarts else "0"),
        tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True) as folder,
        _Relay(Path(folder)) as relay,
        sheltered_children(),
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes.count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=max_restarts,
            monitor_interval=0.2,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="SIGHUP,SIGQUIT",  # _Relay handles SIGINT, SIGTERM and SIGUSR1
            shutdown_timeout=5,
        )
        try:
            results: dict[int, T] = elastic_launch(config, _spawned_worker)(
                entry, processes.kind, args, relay.failure_file
            )
        except ChildFailedError as error:
            raise relay.explained(_as_toolkit_error(error)) from None
        except SignalException as error:
            relay.end_workers()
            if relay.interrupted:
                raise KeyboardInterrupt from None
            raise _stopped_by(error.sigval.name) from None
    return results[0]


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Set environment variables within the block, also those that torch's launcher sets for its processes."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in (*values, "TORCHELASTIC_SIGNALS_TO_HANDLE"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


class _Relay(StopSignals):
    """Forwards SIGTERM and SIGUSR1 to the workers. Ctrl-C or a SIGTERM over a second later ends all at once.

    Attributes:
        failure_file: Path of the file with the run's final error, which restarted workers raise.
        interrupted: Whether SIGINT was received.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.failure_file = folder / "failure"
        self.interrupted = False
        self._since = 0.0  # time of the first signal
        self._others = set(multiprocessing.active_children())  # of whoever called `launch`
        self._over = threading.Event()

    def __enter__(self) -> Self:
        super().__enter__()
        if self._before and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        # While the main thread blocks SIGINT (`sheltered_children`), this one takes it; Python runs the
        # handler in the main thread all the same.
        threading.Thread(target=self._over.wait, daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self._over.set()
        super().__exit__(*details)

    def explained(self, error: Exception) -> Exception:
        """Return the error to raise: a worker killed after a forwarded signal was stopped by that signal."""
        killed = isinstance(error, RunError) and "was killed by signal" in str(error)
        return _stopped_by(self.name) if self.name and killed else error

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Forward a signal."""
        now = time.monotonic()
        workers = self._workers()
        again = self.name and now - self._since > _AGAIN_SECONDS
        if not workers or (again and number == signal.SIGTERM):
            raise SignalException(f"got {signal.Signals(number).name}", sigval=signal.Signals(number))
        if not self.name:
            self._since = now
        super().handle(number, frame)
        self.failure_file.write_text(error_to_text(_stopped_by(self.name)))  # restarted workers end at once
        for worker in workers:
            if worker.pid is not None:
                os.kill(worker.pid, number)

    def end_workers(self) -> None:
        """Kill the workers that the launcher has left, having been interrupted while it started them."""
        for worker in self._workers():
            worker.kill()
            worker.join()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        raise SignalException("got SIGINT", sigval=signal.SIGKILL)  # the workers block SIGINT

    def _workers(self) -> list[BaseProcess]:
        return [process for process in multiprocessing.active_children() if process not in self._others]


def _stopped_by(name: str) -> RunError:
    return RunError(f"stopped by {name}")


def _silence(*packages: str) -> None:
    """Silence loggers, each by itself: some have levels of their own, which hide a parent's level."""
    for name in (*packages, *logging.root.manager.loggerDict):
        if name.startswith(packages):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def process_group(kind: Kind) -> Iterator[DistEnv]:
    """Join the process group that the environment describes, and leave it at the end.

    After an error other processes may be inside a collective, for which leaving could wait forever: the group
    is aborted then, and so are their collectives.
    A GPU process also selects its GPU; a CPU process limits torch to its share of the host's cores.

    Raises:
        UsageError: Variables are missing, there is no route to another first host, or two processes would
            share a GPU.
        RunError: Other processes did not come within 10 minutes.
    """
    env = read_dist_env(kind)
    if env.world_size > env.local_world_size and (name := interface_towards(os.environ["MASTER_ADDR"])):
        # By default gloo uses the interface that this host's name resolves to, often the loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    store, env = meet(env)
    store.set_timeout(_COLLECTIVE_TIMEOUT)
    options: dict[str, Any] = {"backend": "gloo"}
    if kind == "gpu":
        torch.cuda.set_device(env.gpu)
        options = {"backend": "nccl", "device_id": env.device}
    else:
        keep_freed_memory()
        torch.set_num_threads(env.cores or 1)
    dist.init_process_group(
        store=store, rank=env.rank, world_size=env.world_size, timeout=_COLLECTIVE_TIMEOUT, **options
    )
    try:
        yield env
    except BaseException:
        if dist.is_initialized():
            _abort_process_group()
        raise
    dist.destroy_process_group()


def _spawned_worker(
    entry: Callable[..., T], kind: Kind, args: tuple[Any, ...], failure_file: Path
) -> T | None:
    if failure_file.exists():
        text = failure_file.read_text()
        raise error_from_text(text) or RuntimeError(text)
    result = _worker(entry, kind, args, failure_file)
    return result if os.environ["LOCAL_RANK"] == "0" else None


@record
def _worker(
    entry: Callable[..., T], kind: Kind, args: tuple[Any, ...], failure_file: Path | None = None
) -> T | None:
    try:
        with process_group(kind) as env:
            try:
                return entry(env, *args)
            except ToolkitError as error:
                known = as_known(error)
                if failure_file is not None:
                    failure_file.write_text(error_to_text(known))
                announce_failure(known, env)
                raise known from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST_PEER):
            raise
        time.sleep(_ECHO_SECONDS)
        raise LostPeerError(
            f"process {os.environ['RANK']} lost the connection to another process, whose own error is the "
            "cause; without one, its host or the network failed: continue with --resume"
        ) from error


def _as_toolkit_error(error: ChildFailedError) -> Exception:
    """Rebuild the first failed worker's error, as this process would have raised it."""
    rank, failure = error.get_first_failure()
    details: Any = failure.error_file_data.get("message") or failure.message
    stack = ""
    if isinstance(details, dict):  # the exception as torch's `record` writes it
        stack = details.get("extraInfo", {}).get("py_callstack", "")
        details = details.get("message", "")
    known = error_from_text(str(details))
    if known is not None:
        return known
    if failure.exitcode < 0:
        return RunError(
            f"process {rank} was killed by signal {-failure.exitcode} (out of memory, or stopped from "
            "outside); continue with --resume"
        )
    return RuntimeError(f"process {rank} failed:\n{stack or details}")
