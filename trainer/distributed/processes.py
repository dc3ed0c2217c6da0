"""How many processes of which kind a command uses, and who starts them."""

import os
from dataclasses import dataclass

import torch

from pipeline.errors import UsageError
from trainer.distributed.env import Kind


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
