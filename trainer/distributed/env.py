"""Rank and device of this process, choice of processes, and the few collectives that the trainer needs."""

import fcntl
import math
import os
import re
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.arguments import COUNT, check_record, check_whole
from pipeline.errors import UsageError
from pipeline.loader.placement import Placement

Kind = Literal["gpu", "cpu"]
"""Device of a run's processes; all processes of a run have the same kind."""

T = TypeVar("T")


@dataclass(frozen=True)
class DistEnv:
    """Distributed environment of this process.

    Attributes:
        rank, world_size: Global rank, 0..world_size - 1, and number of processes.
        local_rank, local_world_size: Rank among the processes of this host, and their number.
        kind: "gpu" or "cpu".
        restarts: How often all processes were restarted after one was lost.
        cores: This process's share of the host's CPU cores; None, as long as it is not known, for an equal
            share.

    Raises:
        UsageError: `kind` is another word, or a rank is not below the number of its processes.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    kind: Kind = "cpu"
    restarts: int = 0
    cores: int | None = None

    def __post_init__(self) -> None:
        check_record(self, world_size=COUNT, local_world_size=COUNT, restarts=(0, math.inf))
        check_whole("rank", self.rank, 0, self.world_size - 1)
        check_whole("local_rank", self.local_rank, 0, self.local_world_size - 1)

    @property
    def gpu(self) -> int:
        """CUDA index of this process's GPU: its local rank, or 0 where a scheduler shows it one GPU only."""
        shown = torch.cuda.device_count()
        return self.local_rank % shown if shown else self.local_rank

    @property
    def device(self) -> torch.device:
        """The torch device of this process."""
        return torch.device("cuda", self.gpu) if self.kind == "gpu" else torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which calls the callbacks and writes the files."""
        return self.rank == 0

    @property
    def placement(self) -> Placement:
        """This process's rank and cores, as the loader's `Placement`."""
        return Placement(
            rank=self.rank,
            world_size=self.world_size,
            local_world_size=self.local_world_size,
            cores=self.cores,
        )


def read_dist_env(kind: Kind) -> DistEnv:
    """Read RANK, WORLD_SIZE and the like from the environment, where torch's launchers or a script set them.

    Raises:
        UsageError: A variable is missing, or is no possible number.
    """
    _refuse_half(_TORCH)
    rank, world_size = _number("RANK"), _number("WORLD_SIZE")
    local_rank = _number("LOCAL_RANK", 0)
    local_world_size = _number("LOCAL_WORLD_SIZE", local_rank + 1)
    if rank >= world_size or local_rank >= local_world_size:
        raise UsageError(
            f"{launch_variables()}: ranks go from 0 to the number of processes - 1; start all processes by "
            f"one launcher, or unset the variables to work in this process alone"
        )
    _number("MASTER_PORT")
    restarts = _number("TORCHELASTIC_RESTART_COUNT", 0)
    return DistEnv(rank, world_size, local_rank, local_world_size, kind, restarts)


def all_sum(values: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place; a single process's tensor stays as it is."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def all_most(value: float, env: DistEnv) -> float:
    """Return the largest of all processes' values."""
    if env.world_size == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=env.device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return float(shared)


def gather_objects(value: T, env: DistEnv) -> list[T]:
    """Gather a picklable value of every rank.

    Returns:
        All values in rank order on rank 0; an empty list on the others.
    """
    if env.world_size == 1:
        return [value]
    gathered: list[Any] | None = [None] * env.world_size if env.is_first else None
    dist.gather_object(value, gathered)
    return gathered or []


def share_buffers(module: nn.Module) -> None:
    """Copy rank 0's buffers to all processes: batch-norm statistics differ, as each sees other samples."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


@dataclass(frozen=True)
class Processes:
    """Processes that a command starts on this host.

    Attributes:
        kind: "gpu" or "cpu".
        count: Number of processes.
        reason: Why these were chosen, as shown to the user.

    Raises:
        UsageError: `kind` is another word, or there is no process.
    """

    kind: Kind
    count: int
    reason: str

    def __post_init__(self) -> None:
        check_record(self, count=COUNT)


def choose_processes(gpus: int | None, cpus: int | None) -> Processes:
    """Choose processes by the options and the machine: all visible GPUs by default, else one CPU process.

    Args:
        gpus: Value of --gpus, or None.
        cpus: Value of --cpus, or None.

    Raises:
        UsageError: Both are given, one is below 1, or there are fewer GPUs.
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


# What torch needs to know of a process that is one of several, and what Slurm says to the tasks of a step.
_TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SLURM = (
    "SLURM_STEP_NUM_TASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_STEP_TASKS_PER_NODE",
)


def launched_outside() -> bool:
    """Whether torchrun, or a script that sets RANK and WORLD_SIZE, started this process.

    Raises:
        UsageError: Only some of the variables are set that such processes need.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        _refuse_half(_TORCH)
        return True
    return False


def first_of_all() -> bool:
    """Whether this process prints for all: our own launcher, or rank 0 of processes started from outside."""
    return not launched_outside() or os.environ["RANK"] == "0"


def launch_variables() -> str:
    """Return the variables that say that this process is one of several: "RANK=0, WORLD_SIZE=2"."""
    names = [
        "RANK",
        "WORLD_SIZE",
        *(name for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in os.environ),
    ]
    if _is_slurms():
        names = ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"]
    return ", ".join(f"{name}={os.environ[name]}" for name in names)


def _is_slurms() -> bool:
    """Whether RANK and WORLD_SIZE are Slurm's, as `adopt_slurm` sets them."""
    pairs = (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    return all(os.environ.get(ours, ours) == os.environ.get(slurms) for ours, slurms in pairs)


def _refuse_half(names: tuple[str, ...]) -> None:
    """Raise `UsageError` if a variable of a launcher is missing; some of them are set."""
    found = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
    if missing := [name for name in names if not os.environ.get(name)]:
        raise UsageError(
            f"{', '.join(found)}: set, as if a launcher had started this process, but not "
            f"{', '.join(missing)}; unset the former to work in this process alone, or set all"
        )


def _number(name: str, default: int | None = None) -> int:
    """Return the number in a variable.

    Raises:
        UsageError: It is not a number of 0 or more.
    """
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UsageError(
            f"{name}={text}: not a number of 0 or more; a launcher sets it, so unset or correct it"
        )
    return int(text)


# MASTER_PORT is 12,000..31,999: below Linux's range for outgoing connections, which begins at 32,768.
_FIRST_PORT, _PORTS = 12_000, 20_000


def adopt_slurm() -> None:
    """Set the variables that torch reads (RANK, WORLD_SIZE, ...) where `srun` started several processes.

    Variables that have a value are kept, so a user can set MASTER_ADDR and MASTER_PORT. Nothing is set
    outside a Slurm step of several tasks (a batch script is none), or under another launcher.

    Raises:
        UsageError: Some of the step's variables are missing, or the first host is in neither MASTER_ADDR nor
            Slurm's variables.
    """
    # A batch script is task 0, and has no step.
    alone = _number("SLURM_STEP_NUM_TASKS", 1) < 2 and (
        "SLURM_STEP_NUM_TASKS" in os.environ or _number("SLURM_PROCID", 0) == 0
    )
    if alone or "RANK" in os.environ:
        return
    _refuse_half(_SLURM)
    # One number for each node, repeated ones in short form: "4(x2),3".
    nodes = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ["SLURM_STEP_TASKS_PER_NODE"])
    tasks_of_nodes = [count for count, times in nodes for _ in range(int(times or 1))]
    job = int(os.environ.get("SLURM_JOB_ID", "0")) + int(os.environ.get("SLURM_STEP_ID", "0"))
    found = {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks_of_nodes[_number("SLURM_NODEID")],
        "MASTER_ADDR": os.environ.get("MASTER_ADDR") or _first_host(),
        "MASTER_PORT": str(_FIRST_PORT + job % _PORTS),
    }
    os.environ.update({name: value for name, value in found.items() if not os.environ.get(name)})


def _first_host() -> str:
    """Return the first name in Slurm's short form of a host list: "gpu[01-03,7]-ib,login" → gpu01-ib."""
    hosts = os.environ.get("SLURM_STEP_NODELIST", "")
    first = re.sub(r"\[(\d+)[^\]]*\]", r"\1", hosts).partition(",")[0]
    if not re.fullmatch(r"[\w.-]+", first):
        raise UsageError(
            f"SLURM_STEP_NODELIST {hosts!r} names no first host; set MASTER_ADDR to the host of task 0"
        )
    return first


# Linux's ioctl for an interface's IPv4 address, and the bytes of its reply that hold the address.
_SIOCGIFADDR = 0x8915
_ADDRESS = slice(20, 24)


def interface_towards(host: str) -> str | None:
    """Return the name of the network interface by which this host reaches another; nothing is sent.

    Args:
        host: Name or address of a host. It may be this host itself.

    Returns:
        The interface's name, such as "eth0", or None if it has no IPv4 address or is the loopback.

    Raises:
        UsageError: The name does not resolve, or there is no route to it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, _FIRST_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            own = probe.getsockname()[0]
    except OSError as error:
        raise UsageError(
            f"MASTER_ADDR {host}: not known or not reachable from here ({error.strerror}); give a name or "
            "address that all hosts can reach"
        ) from error
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):  # no IPv4 address
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                if socket.inet_ntoa(reply[_ADDRESS]) == own and not own.startswith("127."):
                    return name
    return None
