"""Measure our loader on a GPU with both backends, and sweep over the settings of DALI's JPEG decoder."""

import time
from itertools import product
from pathlib import Path
from statistics import median

import common
import torch
from common import BenchmarkError
from feeder import CROP

from pipeline import Dataset, Loader, Placement, TrainView, color_noise
from pipeline.loader.placement import BackendName

_LOADS = (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)
_BATCHES = (128, 256, 512)


def check() -> None:
    """Check before anything is prepared that there is a GPU.

    Raises:
        BenchmarkError: torch finds no GPU.
    """
    if not torch.cuda.is_available():
        raise BenchmarkError("--device gpu: torch finds no GPU on this machine")


def sweep(data: Path, rounds: int, images: int) -> None:
    """Print the images per second of each backend, batch size, thread count and hardware-decoder load."""
    print(f"GPU: {torch.cuda.get_device_name()}\n")
    dataset = Dataset.open(data)
    threads = sorted({1, 2, 4, common.cores() // 2, common.cores()} - {0})
    settings: list[tuple[BackendName, Placement]] = [
        ("threads", Placement(gpu=0, threads=n)) for n in threads
    ]
    settings += [
        ("dali", Placement(gpu=0, threads=n, hw_decoder_load=load)) for n, load in product(threads, _LOADS)
    ]
    rows = []
    for (backend, place), batch in product(settings, _BATCHES):
        throughputs = _throughputs(dataset, backend, place, batch, rounds, images)
        rows.append((backend, place, batch, throughputs))
    rows.sort(key=lambda row: -median(row[3]))
    table = [
        (
            backend,
            str(batch),
            str(place.threads),
            "–" if backend == "threads" else f"{place.hw_decoder_load:.2f}",
            common.spread(throughputs),
        )
        for backend, place, batch, throughputs in rows
    ]
    print(common.markdown(("backend", "batch", "threads", "hardware decoder's share", "images/s"), table))


def _throughputs(
    dataset: Dataset, backend: BackendName, place: Placement, batch: int, rounds: int, count: int
) -> list[float]:
    view = TrainView(CROP, dataset.statistics.mean, noise=color_noise("paper", dataset.statistics))
    throughputs = []
    with Loader(dataset, "train", view, batch, backend=backend, placement=place, half=True) as loader:
        for number in range(rounds + 1):
            loaded, started = 0, time.perf_counter()
            while loaded < count:
                for images in loader:
                    loaded += len(images.labels)
            torch.cuda.synchronize()
            if number:  # round 0 warms up
                throughputs.append(loaded / (time.perf_counter() - started))
    return throughputs
