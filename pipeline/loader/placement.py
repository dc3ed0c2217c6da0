"""Placement of a loader: its process's rank, the device of its batches, and the backend that makes them."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from pipeline.arguments import COUNT, check_record, checked
from pipeline.errors import UsageError
from pipeline.host import usable_cores

BackendName = Literal["dali", "threads"]
"""What makes batches: NVIDIA DALI, or a pool of threads with libjpeg-turbo and OpenCV."""

# A core decodes some 2,000 stored images per second (docs/benchmarks.md). With this many cores the CPU
# decodes faster than AlexNet trains on any GPU that has no JPEG engine.
_CORES_TO_DECODE = 8
# GPUs with a JPEG engine, by compute capability: A100, H100 and H200, Blackwell's data-center cards.
_JPEG_ENGINE = frozenset([(8, 0), (9, 0), (10, 0), (10, 3)])


# One process decodes some 15,000 to 19,000 images a second with 8 threads, and no more with others.
_THREADS_OF_PROCESS = 8


@dataclass(frozen=True)
class Placement:
    """Rank of a loader's process, and the device and threads that make its batches.

    Attributes:
        rank: Global rank of the process, 0..world_size - 1.
        world_size: Number of processes.
        gpu: Index of the CUDA device on which batches are left; None for batches in host memory.
        threads: Number of decoding threads, or None for as many as `cores`.
        workers: Number of worker processes among which the thread backend divides its threads; 0 for none,
            None for as many as `workers_for` says.
        local_world_size: Number of processes on this host.
        cores: Number of CPU cores that this process has to itself (`pipeline.host.share_of_cores`), or None
            for an equal share of those that it may use.
        hw_decoder_load: Fraction of images, 0..1, that the GPU's JPEG engine decodes if it has one; CUDA
            decodes the rest. 0.65 is DALI's default.

    Raises:
        UsageError: A number is out of range, or `rank` is not within 0..world_size - 1.
    """

    rank: int = 0
    world_size: int = 1
    gpu: int | None = None
    threads: int | None = None
    workers: int | None = None
    local_world_size: int = 1
    cores: int | None = None
    hw_decoder_load: float = 0.65

    def __post_init__(self) -> None:
        check_record(
            self,
            world_size=COUNT,
            gpu=(0, math.inf),
            threads=COUNT,
            workers=(0, math.inf),
            local_world_size=COUNT,
            hw_decoder_load=(0, 1),
        )
        if not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"rank {self.rank} of {self.world_size} processes: ranks go from 0 to {self.world_size - 1}"
            )

    @property
    def thread_count(self) -> int:
        """Number of decoding threads in this process."""
        return self.threads or self.cores or max(1, usable_cores() // self.local_world_size)

    @property
    def worker_count(self) -> int:
        """Number of worker processes of the thread backend; 0 if this process has the threads itself."""
        return workers_for(self.thread_count) if self.workers is None else self.workers


def workers_for(threads: int) -> int:
    """Return among how many worker processes to divide threads; 0 if one process is enough for all.

    With more than some 8, the threads of one process mostly wait for the interpreter's lock.
    """
    return -(-threads // _THREADS_OF_PROCESS) if threads > _THREADS_OF_PROCESS else 0


def has_dali() -> bool:
    """Whether DALI is installed."""
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even its parent package
        return False


def refuse_missing_dali() -> None:
    """Check that DALI is installed.

    Raises:
        UsageError: It is not.
    """
    if not has_dali():
        raise UsageError(
            "the backend dali needs DALI, which is not installed: pip install 'alexnet-toolkit[cuda13]', or "
            "cuda12 (Linux only), or choose the backend threads"
        )


@checked(cores=COUNT)
def choose_backend(cores: int, capability: tuple[int, int] | None, *, dali: bool) -> tuple[BackendName, str]:
    """Choose the faster backend, and say why.

    Args:
        cores: CPU cores that one process has.
        capability: Compute capability of the GPU, (major, minor), or None if the model is on the CPU.
        dali: Whether DALI is installed.
    """
    if capability is None:
        return "threads", "there is no GPU"
    if not dali:
        return "threads", "DALI is not installed"
    if capability not in _JPEG_ENGINE and cores >= _CORES_TO_DECODE:
        return "threads", f"{cores} cores decode faster than this GPU, which has no JPEG engine"
    return "dali", "the GPU decodes"
