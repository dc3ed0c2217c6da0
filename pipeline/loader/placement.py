"""Which process of how many a loader serves, and where its images are decoded and augmented."""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import UsageError
from pipeline.host import usable_cores

Device = Literal["cpu", "hybrid", "gpu"]
"""Where the graph runs: all on the CPU; decoding there and augmentation on the GPU; all on the GPU."""

# A core decodes the crop of some 2,400 stored images a second (docs/benchmarks.md): with this many the CPU
# decodes faster than AlexNet learns on any GPU that has no JPEG engine to do it.
_CORES_TO_DECODE = 8
# GPUs with a JPEG engine, by compute capability: A100, H100 and H200, Blackwell's data-center cards.
_JPEG_ENGINE = frozenset([(8, 0), (9, 0), (10, 0), (10, 3)])


@dataclass(frozen=True)
class Placement:
    """Which process of how many this is, and where its batches are made.

    Attributes:
        rank: global rank, 0..world - 1.
        world: number of processes.
        device: "cpu", or "hybrid" or "gpu" for batches on CUDA device `local_rank`.
        local_rank: index of the process on its host.
        threads: DALI's CPU threads, or None for this host's cores shared among `local_world_size`.
        local_world: processes on this host.
        hw_decoder_load: share of images that a GPU's JPEG engine decodes, where it has one; the rest is
            decoded by CUDA. DALI's default.
    """

    rank: int = 0
    world_size: int = 1
    device: Device = "cpu"
    local_rank: int = 0
    threads: int | None = None
    local_world_size: int = 1
    hw_decoder_load: float = 0.65

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"rank {self.rank} of {self.world_size} processes: ranks go from 0 to {self.world_size - 1}"
            )

    @property
    def thread_count(self) -> int:
        """DALI's CPU threads in this process."""
        return self.threads or max(1, usable_cores() // self.local_world_size)

    @property
    def device_id(self) -> int | None:
        """The CUDA device that batches are on, None for the CPU."""
        return None if self.device == "cpu" else self.local_rank


def choose_device(cores: int, capability: tuple[int, int] | None) -> Device:
    """Where images are best decoded and augmented.

    Args:
        cores: of the CPU, for one process.
        capability: the GPU's compute capability, or None where batches go to the CPU.
    """
    if capability is None:
        return "cpu"
    return "hybrid" if capability not in _JPEG_ENGINE and cores >= _CORES_TO_DECODE else "gpu"
