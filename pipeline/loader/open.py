"""Open a loader for a training loop of one's own."""

import math
from pathlib import Path
from typing import Literal

import torch

from pipeline.arguments import COUNT, checked
from pipeline.dataset.dataset import Dataset
from pipeline.loader.live_shards import ReadOptions
from pipeline.loader.loader import Loader
from pipeline.loader.placement import BackendName, Placement, choose_backend, has_dali
from pipeline.loader.threads.cutter import TransformFunction
from pipeline.loader.views import EvalView, TrainView


@checked(global_batch=COUNT, seed=(0, math.inf))
def open_loader(
    dataset: Dataset | str | Path,
    split: str,
    *,
    global_batch: int,
    view: TrainView | EvalView,
    backend: BackendName | Literal["auto"] = "auto",
    rank: int = 0,
    world_size: int = 1,
    local_world_size: int | None = None,
    gpu: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    half: bool = False,
    channels_last: bool = False,
    access: ReadOptions | None = None,
    transform: TransformFunction | None = None,
) -> Loader:
    """Open a loader, whose iteration yields batches of tensors.

    `set_epoch`, `set_position`, `state_dict` and `load_state_dict` behave as in torchdata's
    StatefulDataLoader: a state holds the position after the last batch, and a loader that loads it goes on
    with the next one.

    Args:
        dataset: An opened dataset, or its path or URL.
        split: "train", "val" or "test".
        global_batch: Samples in a batch of all processes, of which each gets its slice; with an `EvalView`,
            samples in a batch that one process takes whole.
        view: Crops, flips and normalization of each image.
        backend: "dali" or "threads"; "auto" takes the faster one, by `pipeline.choose_backend`.
        rank: Rank of this process, 0..world_size - 1.
        world_size: Number of processes.
        local_world_size: Number of processes on this host, which share its cores; None for all of them.
        gpu: Index of the CUDA device on which batches are left; None for batches in host memory.
        threads: Number of decoding threads of this process; None for its share of the cores.
        workers: Number of worker processes among which the thread backend divides its threads; 0 for none.
            None starts some only for more than eight threads. A script that uses them must be guarded by
            `if __name__ == "__main__":`.
        seed: Seed of order and augmentation, the same on all processes.
        half: Give float16 images instead of float32.
        channels_last: Store images in torch's channels-last memory format.
        access: How shards are read. By default they are memory-mapped, without a cache.
        transform: Called with each stored image, uint8 (H, W, 3), and a NumPy generator whose numbers depend
            on seed, epoch and the sample's position in the split alone. The view cuts the image that it
            returns, uint8 (H, W, 3) of any size in which the crop fits. On the thread backend only; it must
            be picklable where there are worker processes.

    Raises:
        UsageError: There is no such dataset or split, or an argument is not possible, as `Loader` lists.
        RunError: The bucket cannot be reached.

    Examples:
        >>> with open_loader("imagenet", "train", global_batch=128, view=TrainView()) as loader:
        ...     for batch in loader:
        ...         step(batch.images, batch.labels)
    """
    place = Placement(
        rank=rank,
        world_size=world_size,
        gpu=gpu,
        threads=threads,
        workers=workers,
        local_world_size=world_size if local_world_size is None else local_world_size,
    )
    if backend == "auto" and transform is None:
        capability = None if gpu is None else torch.cuda.get_device_capability(gpu)
        backend, _ = choose_backend(place.thread_count, capability, dali=has_dali())
    return Loader(
        dataset if isinstance(dataset, Dataset) else Dataset.open(dataset),
        split,
        view,
        global_batch,
        backend=backend,
        placement=place,
        seed=seed,
        half=half,
        channels_last=channels_last,
        access=access,
        transform=transform,
    )
