"""Memory that this process uses."""

import os
from pathlib import Path

import torch

from trainer.distributed.env import World


def resident_mb() -> float:
    """Host memory of this process, MB; pages that it shares with others are counted too."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def device_mb(world: World) -> float:
    """What is in use on this process's GPU, MB, by torch, DALI and CUDA itself; 0 on the CPU."""
    if world.kind == "cpu":
        return 0.0
    free, total = torch.cuda.mem_get_info(world.device)
    return (total - free) / 1e6


def used_mb(world: World) -> float:
    """What limits a run: the most that torch held on the GPU, or host memory on the CPU, MB."""
    return torch.cuda.max_memory_allocated() / 1e6 if world.kind == "gpu" else resident_mb()
