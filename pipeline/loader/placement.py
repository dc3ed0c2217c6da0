"""Placement of a loader: its process's rank, and the device that decodes and augments images."""

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.arguments import COUNT, check_record, checked
from pipeline.errors import UsageError
from pipeline.host import usable_cores

Device = Literal["cpu", "hybrid", "gpu"]
"""Device that decodes and augments: the CPU, the GPU, or "hybrid": the CPU decodes and the GPU augments."""

# A core decodes the crops of some 1,600 stored images per second (docs/benchmarks.md, the CPU's share of
# "hybrid" with one thread). With this many cores the CPU decodes faster than AlexNet trains on any GPU
# that has no JPEG engine.
_CORES_TO_DECODE = 8
# GPUs with a JPEG engine, by compute capability: A100, H100 and H200, Blackwell's data-center cards.
_JPEG_ENGINE = frozenset([(8, 0), (9, 0), (10, 0), (10, 3)])


@dataclass(frozen=True)
class Placement:
    """Rank of a loader's process, and the device and threads that make its batches.

    Attributes:
        rank: Global rank of the process, 0..world_size - 1.
        world_size: Number of processes.
        device: "cpu" for batches in host memory; "hybrid" or "gpu" for batches on CUDA device `local_rank`.
        local_rank: Rank of the process on its host.
        threads: Number of DALI's CPU threads, or None for as many as `cores`.
        local_world_size: Number of processes on this host.
        cores: Number of CPU cores that this process has to itself (`pipeline.host.share_of_cores`), or None
            for an equal share of those that it may use.
        hw_decoder_load: Fraction of images, 0..1, that the GPU's JPEG engine decodes if it has one; CUDA
            decodes the rest. 0.65 is DALI's default.

    Raises:
        UsageError: `device` is another word, a number is out of range, or `rank` is not within
            0..world_size - 1.
    """

    rank: int = 0
    world_size: int = 1
    device: Device = "cpu"
    local_rank: int = 0
    threads: int | None = None
    local_world_size: int = 1
    cores: int | None = None
    hw_decoder_load: float = 0.65

    def __post_init__(self) -> None:
        check_record(
            self,
            world_size=COUNT,
            local_rank=(0, math.inf),
            threads=COUNT,
            local_world_size=COUNT,
            hw_decoder_load=(0, 1),
        )
        if not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"rank {self.rank} of {self.world_size} processes: ranks go from 0 to {self.world_size - 1}"
            )

    @property
    def thread_count(self) -> int:
        """Number of DALI's CPU threads in this process."""
        return self.threads or self.cores or max(1, usable_cores() // self.local_world_size)

    @property
    def device_id(self) -> int | None:
        """Index of the CUDA device that holds the batches, None for the CPU."""
        return None if self.device == "cpu" else self.local_rank


@checked(cores=COUNT)
def choose_device(cores: int, capability: tuple[int, int] | None) -> Device:
    """Choose the fastest device for decoding and augmentation.

    Args:
        cores: CPU cores that one process has.
        capability: Compute capability of the GPU, (major, minor), or None if the model is on the CPU.
    """
    if capability is None:
        return "cpu"
    return "hybrid" if capability not in _JPEG_ENGINE and cores >= _CORES_TO_DECODE else "gpu"
