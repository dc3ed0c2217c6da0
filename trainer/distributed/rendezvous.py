"""Meeting of a run's processes: wait for all with a limit, compare their GPUs, and divide the CPU cores."""

import os
import socket
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import timedelta

import msgspec
import torch
from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import RunError, UsageError
from pipeline.host import affinity, share_of_cores
from trainer.distributed.env import DistEnv, launch_variables

# Hosts of a cluster start minutes apart at most, also where each imports torch from a network file system.
_LIMIT = timedelta(minutes=10)
_QUIET_SECONDS = 5.0


@dataclass(frozen=True)
class Seat:
    """What a process shares with others of its host.

    Attributes:
        host: Name of its host.
        cpus: Numbers of the CPU cores that it may run on.
        gpu: UUID of its GPU, or of its slice of one; "" for a CPU process.
    """

    host: str
    cpus: list[int]
    gpu: str


def meet(env: DistEnv) -> tuple[Store, DistEnv]:
    """Wait until all processes have connected to the store at MASTER_ADDR and MASTER_PORT.

    After 5 s the first process of each host says on stderr what it waits for, and why.

    Returns:
        The processes' store, and `env` with this process's share of the CPU cores.

    Raises:
        RunError: Another process did not come within 10 minutes, or the store cannot be reached.
        UsageError: Two processes use the same GPU.
    """
    store = _connect(env)
    seats = _exchange(store, env, Seat(socket.gethostname(), sorted(affinity()), gpu_id(env)))
    refuse_shared_gpus(seats)
    here = [seat.cpus for seat in seats if seat.host == seats[env.rank].host]
    return store, replace(env, cores=share_of_cores(here))


def gpu_id(env: DistEnv) -> str:
    """Return the UUID of this process's GPU; "" for a CPU process."""
    return str(torch.cuda.get_device_properties(env.device).uuid) if env.kind == "gpu" else ""


def refuse_shared_gpus(seats: list[Seat]) -> None:
    """Raise `UsageError` for the first two processes that use the same GPU.

    Args:
        seats: Of all processes, in the order of their ranks.
    """
    users: dict[str, int] = {}
    for rank, seat in enumerate(seats):
        first = users.setdefault(seat.gpu, rank) if seat.gpu else rank
        if first != rank:
            raise UsageError(
                f"processes {first} and {rank} on {seat.host} would share one GPU ({seat.gpu}): start one "
                "process for each GPU, and show each process all GPUs of its host or one of its own"
            )


def _connect(env: DistEnv) -> Store:
    """Connect in a thread: torch's call cannot be interrupted."""
    found: Future[Store] = Future()

    def run() -> None:
        try:
            found.set_result(next(rendezvous("env://", timeout=_LIMIT))[0])
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    waiting = f"{env.world_size} processes to meet at {address}, as {launch_variables()} say"
    try:
        try:
            return found.result(_QUIET_SECONDS)
        except TimeoutError:
            # A launcher has started all of its processes by itself.
            if env.local_rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
                print(f"waiting for {waiting}", file=sys.stderr, flush=True)
            return found.result()
    except DistError as error:
        raise RunError(
            f"waited for {waiting}, but not all came ({str(error).splitlines()[0]}); start all of them at "
            "about the same time, or unset these variables to work in this process alone"
        ) from error


def _exchange(store: Store, env: DistEnv, own: Seat) -> list[Seat]:
    """Return the seats of all processes, in the order of their ranks."""
    store.set(f"alexnet-seat/{env.rank}", msgspec.json.encode(own).decode())
    return [
        msgspec.json.decode(store.get(f"alexnet-seat/{rank}"), type=Seat) for rank in range(env.world_size)
    ]
