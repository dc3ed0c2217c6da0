"""Which process this is among all, and the few collectives that the trainer needs."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.loader.placement import Placement

Kind = Literal["gpu", "cpu"]
T = TypeVar("T")


@dataclass(frozen=True)
class DistEnv:
    """This process among all.

    Attributes:
        rank, world_size: global rank and number of processes.
        local_rank, local_world_size: the same on this host.
        kind: "gpu" or "cpu".
        restarts: times that the processes were started anew after one was lost.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    kind: Kind = "cpu"
    restarts: int = 0

    @property
    def gpu(self) -> int:
        """Index of this process's GPU: its own of the host's, or the only one that a scheduler shows it."""
        shown = torch.cuda.device_count()
        return self.local_rank % shown if shown else self.local_rank

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cuda", self.gpu) if self.kind == "gpu" else torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes files."""
        return self.rank == 0

    @property
    def placement(self) -> Placement:
        """The same for the loader, all on one device."""
        return Placement(
            rank=self.rank,
            world_size=self.world_size,
            device=self.kind,
            local_rank=self.gpu if self.kind == "gpu" else self.local_rank,
            local_world_size=self.local_world_size,
        )


def read_dist_env(kind: Kind) -> DistEnv:
    """What torch's launchers, or a script in their place, say in the environment.

    Raises:
        KeyError: RANK or WORLD_SIZE is not set.
    """
    return DistEnv(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        kind=kind,
        restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def all_sum(values: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place where there are several."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def all_most(value: float, env: DistEnv) -> float:
    """The largest of all processes' values."""
    if env.world_size == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=env.device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return float(shared)


def gather_objects(value: T, env: DistEnv) -> list[T]:
    """Every rank's value in rank order, on rank 0; elsewhere an empty list."""
    if env.world_size == 1:
        return [value]
    gathered: list[Any] | None = [None] * env.world_size if env.is_first else None
    dist.gather_object(value, gathered)
    return gathered or []


def share_buffers(module: nn.Module) -> None:
    """Give every process rank 0's buffers: each has batch-norm statistics of its own samples."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


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


def first_of_all() -> bool:
    """Whether this process speaks for all: the launcher's own, or rank 0 of those started outside."""
    return os.environ.get("RANK", "0") == "0"


# Below Linux's own range for outgoing connections, which begins at 32,768.
_FIRST_PORT, _PORTS = 12_000, 20_000


def adopt_slurm(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Set RANK, WORLD_SIZE and what else torch reads, where `srun` started this process as one of several.

    Nothing is set outside such a step (a batch script has no step of several tasks), under another
    launcher, or where a variable has a value already: MASTER_ADDR and MASTER_PORT can be given.

    Returns:
        What was set.
    """
    env = os.environ if environment is None else environment
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks < 2 or "SLURM_PROCID" not in env or "RANK" in env:
        return {}
    here = int(env.get("SLURM_NODEID", "0"))
    job = int(env.get("SLURM_JOB_ID", "0")) + int(env.get("SLURM_STEP_ID", "0"))
    found = {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": str(tasks_of_nodes(env["SLURM_STEP_TASKS_PER_NODE"])[here]),
        "MASTER_ADDR": hosts_of(env["SLURM_STEP_NODELIST"])[0],
        "MASTER_PORT": str(_FIRST_PORT + job % _PORTS),
    }
    new = {name: value for name, value in found.items() if name not in env}
    if environment is None:
        os.environ.update(new)
    return new


def tasks_of_nodes(text: str) -> list[int]:
    """Slurm's short form of tasks for each node: "4(x2),3" → [4, 4, 3]."""
    tasks = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        tasks += [int(count)] * int(times.rstrip(")") or 1)
    return tasks


def hosts_of(text: str) -> list[str]:
    """Slurm's short form of a list of hosts: "gpu[01-03,7],login" → gpu01, gpu02, gpu03, gpu7, login."""
    hosts = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        hosts += _expanded(name)
    return hosts


def _expanded(name: str) -> list[str]:
    found = re.search(r"\[([^\]]*)\]", name)
    if found is None:
        return [name]
    before, after = name[: found.start()], name[found.end() :]
    numbers = []
    for part in found[1].split(","):
        low, _, high = part.partition("-")
        numbers += [str(n).zfill(len(low)) for n in range(int(low), int(high or low) + 1)]
    return [host for number in numbers for host in _expanded(before + number + after)]
