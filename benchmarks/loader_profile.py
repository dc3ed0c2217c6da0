"""Profile the loader on the CPU: time per image of each stage of the thread backend, on one thread."""

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from statistics import median

import common
import numpy as np
import simplejpeg
from feeder import CROP
from feeder_ours import long

from pipeline import Dataset, Loader, Placement, TrainView, color_noise
from pipeline.loader.augmentation import draw, shape_in_loader
from pipeline.loader.threads.cutter import Cutter

_BATCH = 128
_BATCHES = 8
_WARM_UP = 3


def profile(data: Path, rounds: int) -> list[tuple[str, float, float]]:
    """Print a table of the stages, which take turns in each round.

    Returns:
        (stage, CPU microseconds per image, wall microseconds per image), medians of the rounds.
    """
    dataset = Dataset.open(data)
    steps = _stages(dataset)
    steps["the loader: the paper's crops and labels, as tensors"] = _loader(dataset)
    steps["libjpeg-turbo alone, whole images in memory: the limit"] = _limit(dataset)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            measured[name].append(_time(step))
    found = [
        (name, *(median(values) for values in zip(*times, strict=True))) for name, times in measured.items()
    ]
    size = "original size" if dataset.image.mode == "original" else f"{dataset.image.size} px"
    print(f"Profile: {size}, one thread, each stage alone\n")
    cells = [(name, f"{cpu:,.0f}", f"{wall:,.0f}") for name, cpu, wall in found]
    print(common.markdown(("stage", "CPU µs/image", "wall"), cells) + "\n")
    return found


def _time(step: Callable[[], object]) -> tuple[float, float]:
    """Run `step` repeatedly and return CPU and wall microseconds per image."""
    for _ in range(_WARM_UP):
        step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(_BATCHES):
        step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    _settle()
    return cpu / (_BATCH * _BATCHES) * 1e6, wall / (_BATCH * _BATCHES) * 1e6


def _settle() -> None:
    """Wait until this process is idle, so that prefetching does not count in the next measurement."""
    before = -1.0
    while time.process_time() - before > 0.002:
        before = time.process_time()
        time.sleep(0.05)


def _loader(dataset: Dataset) -> Callable[[], object]:
    loader = Loader(long(dataset), "train", _view(dataset, "paper"), _BATCH, placement=Placement(threads=1))

    def batches() -> Iterator[object]:
        while True:
            yield from loader

    return batches().__next__


def _limit(dataset: Dataset) -> Callable[[], object]:
    images = cycle(_jpegs(dataset))

    def run() -> None:
        for _ in range(_BATCH):
            simplejpeg.decode_jpeg(next(images), "RGB")

    return run


def _jpegs(dataset: Dataset) -> list[bytes]:
    samples = dataset.samples("train")
    return [one.data for one in samples.stored(range(min(1000, len(samples))))]


def _view(dataset: Dataset, augmentation: str) -> TrainView:
    noise = color_noise("paper", dataset.statistics)
    return TrainView(CROP, dataset.statistics.mean, noise=noise, augmentation=augmentation)  # type: ignore[arg-type]


def _stages(dataset: Dataset) -> dict[str, Callable[[], object]]:
    jpegs, out = _jpegs(dataset)[:_BATCH], np.empty((_BATCH, CROP, CROP, 3), np.float32)
    jpegs *= -(-_BATCH // len(jpegs))
    stages: dict[str, Callable[[], object]] = {}
    for augmentation in ("paper", "random-resized-crop"):
        view = _view(dataset, augmentation)
        cutter, draws = Cutter(view, dataset.image), draw(0, 0, 0, _BATCH)
        shapes = [shape_in_loader(jpeg, view, dataset.image) for jpeg in jpegs[:_BATCH]]
        cuts = cutter.cuts(draws, np.array(shapes))
        images = [cutter.decode(jpeg, shape).copy() for jpeg, shape in zip(jpegs, shapes, strict=False)]

        def plan(view: TrainView = view, cutter: Cutter = cutter) -> None:
            found = [shape_in_loader(jpeg, view, dataset.image) for jpeg in jpegs[:_BATCH]]
            cutter.cuts(draw(0, 0, 0, _BATCH), np.array(found))

        def decode(cutter: Cutter = cutter, shapes: list[tuple[int, int]] = shapes) -> None:
            for jpeg, shape in zip(jpegs, shapes, strict=False):
                cutter.decode(jpeg, shape)

        def cut(cutter: Cutter = cutter, cuts: object = cuts, images: list[object] = images) -> None:
            for row, image in enumerate(images):
                cutter.cut(image, cuts, row, out[row])  # type: ignore[arg-type]

        stages |= {
            f"{augmentation}: draw and compute windows": plan,
            f"{augmentation}: decode": decode,
            f"{augmentation}: cut, flip, − mean and noise, to float32": cut,
        }
    return stages
