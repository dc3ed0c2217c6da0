"""Processes: which one this is, how they start, and the few collectives that the trainer needs."""

import logging
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.cores import usable_cores
from pipeline.errors import RunError, UsageError
from pipeline.placement import Placement

Kind = Literal["gpu", "cpu"]
T = TypeVar("T")

# When one process fails, a collective fails in the others. Their errors are echoes: they wait until the
# launcher, which looks every 0.2 s, has seen the first and ends them.
_LOST_PEER = ("closed by peer", "reset by peer", "Broken pipe", "remote process")
_ECHO_SECONDS = 15.0


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank, size: global rank and number of processes.
        local_rank, local_size: the same on this host.
        kind: "gpu" or "cpu".
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    kind: Kind = "cpu"

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cuda", self.local_rank) if self.kind == "gpu" else torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes files."""
        return self.rank == 0

    @property
    def placement(self) -> Placement:
        """The same for the loader, all on one device."""
        return Placement(
            rank=self.rank,
            world=self.size,
            device=self.kind,
            local_rank=self.local_rank,
            local_world=self.local_size,
        )


@dataclass(frozen=True)
class Processes:
    """How many processes of which kind a command shall use, and why, for the user to read."""

    kind: Kind
    count: int
    reason: str


def choose_processes(gpus: int | None, cpus: int | None) -> Processes:
    """Decide from the flags and the machine: all visible GPUs by default, else one CPU process.

    Raises:
        UsageError: both flags, a count below one, or more GPUs than there are.
    """
    if gpus is not None and cpus is not None:
        raise UsageError("--gpus and --cpus were both given; choose one")
    for name, count in (("--gpus", gpus), ("--cpus", cpus)):
        if count is not None and count < 1:
            raise UsageError(f"{name} {count}: give at least 1")
    found = torch.cuda.device_count()
    if cpus is not None:
        return Processes("cpu", cpus, f"{cpus} CPU process{'es' if cpus > 1 else ''} (--cpus)")
    if gpus is None:
        if found:
            return Processes("gpu", found, f"all {found} visible GPU{'s' if found > 1 else ''}")
        return Processes("cpu", 1, "one CPU process (no GPU found)")
    if gpus > found:
        raise UsageError(
            f"--gpus {gpus} was asked for, but this machine shows {found} GPU{'' if found == 1 else 's'}; "
            f"use --cpus {gpus} to train on the CPU" + (f", or --gpus {found}" if found else "")
        )
    return Processes("gpu", gpus, f"{gpus} GPU{'s' if gpus > 1 else ''} (--gpus)")


def launched_outside() -> bool:
    """Whether torchrun, or a script that sets its variables, started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def first_on_host() -> bool:
    """Whether this process does what each host needs once, before the processes meet."""
    return not launched_outside() or os.environ.get("LOCAL_RANK", "0") == "0"


def launch(processes: Processes, entry: Callable[..., T], *args: Any) -> T | None:
    """Run `entry(world, *args)` in every process and return rank 0's result.

    One process runs here; several are started by torch's elastic launcher. Under torchrun, this
    process is one of those that it started, and other ranks than 0 return None.

    Raises:
        ToolkitError: what a worker raised, with its message and exit code.
        RunError: a worker was killed, or this process was told to end.
        KeyboardInterrupt: Ctrl-C, as in one process.
    """
    if launched_outside():
        return _worker(entry, processes.kind, args)
    if processes.count == 1:
        return entry(World(kind=processes.kind), *args)
    _silence("torch.distributed.elastic", "torch.multiprocessing")  # what failed is raised below
    try:
        with tempfile.TemporaryDirectory(prefix="alexnet-") as logs:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes.count,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                monitor_interval=0.2,
                start_method="spawn",
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            results: dict[int, T] = elastic_launch(config, _spawned_worker)(entry, processes.kind, args)
    except ChildFailedError as error:
        raise _as_toolkit_error(error) from None
    except SignalException as error:  # the launcher has ended the workers
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise RunError(f"stopped by {error.sigval.name}; what was finished is kept") from None
    return results[0]


def _silence(*packages: str) -> None:
    """Keep loggers quiet that have levels of their own, so that a parent's level does not reach them."""
    for name in (*packages, *logging.root.manager.loggerDict):
        if name.startswith(packages):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def all_sum(values: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place where there are several."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def all_most(value: float, world: World) -> float:
    """The largest of all processes' values."""
    if world.size == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=world.device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return float(shared)


def gather_objects(value: T, world: World) -> list[T]:
    """Every rank's value in rank order, on rank 0; elsewhere an empty list."""
    if world.size == 1:
        return [value]
    gathered: list[Any] | None = [None] * world.size if world.is_first else None
    dist.gather_object(value, gathered)
    return gathered or []


def share_buffers(module: nn.Module) -> None:
    """Give every process rank 0's buffers: each has batch-norm statistics of its own samples."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


@contextmanager
def process_group(kind: Kind) -> Iterator[World]:
    """Join the group that the environment describes, and leave it in the end, unless by an error.

    After an error others may be inside a collective, and an orderly leave could wait for them for ever.

    Raises:
        KeyError: RANK or WORLD_SIZE is not set.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    world = World(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=local_rank,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        kind=kind,
    )
    if kind == "gpu":
        torch.cuda.set_device(local_rank)
        dist.init_process_group("nccl", device_id=world.device)
    else:
        torch.set_num_threads(max(1, usable_cores() // world.local_size))
        dist.init_process_group("gloo")
    yield world
    dist.destroy_process_group()


def _spawned_worker(entry: Callable[..., T], kind: Kind, args: tuple[Any, ...]) -> T | None:
    # Ctrl-C reaches every process of a terminal, and the launcher passes it on: die of it, without a stack.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _worker(entry, kind, args)


@record
def _worker(entry: Callable[..., T], kind: Kind, args: tuple[Any, ...]) -> T | None:
    with process_group(kind) as world:
        try:
            result = entry(world, *args)
        except RuntimeError as error:
            if any(words in str(error) for words in _LOST_PEER):
                time.sleep(_ECHO_SECONDS)
            raise
        return result if world.is_first else None


def _as_toolkit_error(error: ChildFailedError) -> Exception:
    """The first failed worker's error, as it would have been in this process."""
    rank, failure = error.get_first_failure()
    details: Any = failure.error_file_data.get("message") or failure.message
    stack = ""
    if isinstance(details, dict):  # what torch's `record` noted of the exception
        stack = details.get("extraInfo", {}).get("py_callstack", "")
        details = details.get("message", "")
    kind, _, text = str(details).partition(": ")
    for known in (UsageError, RunError):
        if kind == known.__name__:
            return known(text)
    if failure.exitcode < 0:
        return RunError(
            f"process {rank} was killed by signal {-failure.exitcode} (out of memory, or stopped from "
            "outside); continue with --resume"
        )
    return RuntimeError(f"process {rank} failed:\n{stack or details}")
