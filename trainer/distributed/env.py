"""Which process this is among all, and the few collectives that the trainer needs."""

import os
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.loader.placement import Placement

Kind = Literal["gpu", "cpu"]
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank, size: global rank and number of processes.
        local_rank, local_size: the same on this host.
        kind: "gpu" or "cpu".
        restarts: times that the processes were started anew after one was lost.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
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
            world=self.size,
            device=self.kind,
            local_rank=self.gpu if self.kind == "gpu" else self.local_rank,
            local_world=self.local_size,
        )


def world_of_environment(kind: Kind) -> World:
    """What torch's launchers, or a script in their place, say in the environment.

    Raises:
        KeyError: RANK or WORLD_SIZE is not set.
    """
    return World(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        kind=kind,
        restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


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
