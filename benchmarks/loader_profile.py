"""Profile the loader on the CPU: time per image of pipelines that end after each stage, on one thread."""

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import common
import nvidia.dali.fn as fn
import simplejpeg
from feeder import CROP
from feeder_ours import long
from nvidia.dali import pipeline_def

from pipeline import Dataset, Loader, Placement, TrainView, color_noise
from pipeline.dataset.manifest import ImageFormat
from pipeline.loader.dali import graph

_BATCH = 128
_BATCHES = 8
_WARM_UP = 3


def profile(data: Path, rounds: int) -> list[tuple[str, float, float]]:
    """Print a table of the stages, which take turns in each round.

    Returns:
        (stage, CPU microseconds per image, wall microseconds per image), medians of the rounds.
    """
    dataset = Dataset.open(data)
    steps = {name: _pipeline(stage) for name, stage in _stages(dataset).items()}
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
    print(f"Profile: {size}, one thread, pipelines that end after each stage\n")
    cells = [(name, f"{cpu:,.0f}", f"{wall:,.0f}") for name, cpu, wall in found]
    print(common.markdown(("pipeline", "CPU µs/image", "wall"), cells) + "\n")
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


def _pipeline(stage: Callable[[], Any]) -> Callable[[], object]:
    """Return a function that runs a stage on one batch, without prefetching."""
    pipe = pipeline_def(stage)(
        batch_size=_BATCH,
        num_threads=1,
        device_id=None,
        seed=1,
        exec_dynamic=True,
        prefetch_queue_depth=1,
    )
    pipe.build()

    def run() -> None:
        pipe.schedule_run()
        pipe.outputs()

    return run


def _loader(dataset: Dataset) -> Callable[[], object]:
    loader = Loader(long(dataset), "train", _paper(dataset), _BATCH, placement=Placement(threads=1))

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
    pipe = graph.raw(_reader(dataset, buffer=0), batch_size=1, device_id=None)
    pipe.build()
    return [bytes(pipe.run()[0].at(0)) for _ in range(dataset.samples("train"))]


def _paper(dataset: Dataset) -> TrainView:
    return TrainView(CROP, dataset.statistics.mean, noise=color_noise("paper", dataset.statistics))


def _reader(dataset: Dataset, buffer: int) -> graph.ReaderSettings:
    return graph.ReaderSettings(
        tars=list(map(str, dataset.tars("train"))),
        indexes=list(map(str, dataset.indexes("train"))),
        label_width=dataset.manifest.label_width,
        buffer=buffer,
    )


def _stages(dataset: Dataset) -> dict[str, Callable[[], Any]]:
    reader, stored = _reader(dataset, buffer=2048), dataset.image
    place, output = Placement(), graph.OutputSettings()
    scaled = TrainView(CROP, dataset.statistics.mean, augmentation="random-resized-crop")

    def jpeg() -> Any:
        return graph._read(reader)[0]

    def part() -> Any:
        return fn.decoders.image_random_crop(
            jpeg(),
            adjust_orientation=False,
            random_area=graph.RESIZED_AREA,
            random_aspect_ratio=graph.RESIZED_RATIO,
            num_attempts=graph.RESIZED_TRIES,
        )

    crop, end = _crop_label(stored), "flip, − mean, to float32"
    return {
        "read": jpeg,
        "read, decode whole": lambda: graph._whole(jpeg(), place),
        crop: lambda: graph._random_crop(jpeg(), CROP, stored, place),
        f"{crop}, {end}": lambda: graph._train(jpeg(), _paper(dataset), stored, place, output),
        "read, decode a random part": part,
        "read, decode a random part, scale": lambda: graph._random_resized(jpeg(), CROP, place),
        f"read, decode a random part, scale, {end}": lambda: graph._train(
            jpeg(), scaled, stored, place, output
        ),
    }


def _crop_label(stored: ImageFormat) -> str:
    return "read, decode whole, scale and cut" if stored.mode == "original" else "read, decode the crop"
