"""Where a picture's time goes on the CPU: each stage of the graph as a pipeline of its own, one thread."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import common
import nvidia.dali.fn as fn
from feeding import CROP
from nvidia.dali import pipeline_def

from pipeline import Dataset, Placement, TrainView, graph

_BATCH = 128
_BATCHES = 8


def profile(data: Path, rounds: int) -> list[tuple[str, float]]:
    """Print and return CPU microseconds for a picture of each stage, those of a round interleaved."""
    stages = _stages(Dataset.open(data))
    pipes = {}
    for name, stage in stages.items():
        pipe = pipeline_def(stage)(
            batch_size=_BATCH, num_threads=1, device_id=None, seed=1, exec_dynamic=True
        )
        for _ in range(3):
            pipe.run()
        pipes[name] = pipe
    taken: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            started = time.process_time()
            for _ in range(_BATCHES):
                pipe.run()
            taken[name].append((time.process_time() - started) / (_BATCH * _BATCHES) * 1e6)
    found = [(name, median(values)) for name, values in taken.items()]
    print("Where the time goes: 256 px, one thread, CPU time of pipelines that end after each stage.\n")
    print(common.markdown(("pipeline", "CPU µs/picture"), [(name, f"{cpu:,.0f}") for name, cpu in found]))
    print()
    return found


def _stages(dataset: Dataset) -> dict[str, Callable[[], Any]]:
    reader = graph.ReaderSettings(
        tars=list(map(str, dataset.tars("train"))),
        indexes=list(map(str, dataset.indexes("train"))),
        label_width=dataset.manifest.label_width,
        buffer=2048,
    )
    place, stored, output = Placement(), dataset.image, graph.OutputSettings()
    plain = TrainView(CROP, dataset.statistics.mean)
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

    return {
        "read": jpeg,
        "read, decode whole": lambda: graph._whole(jpeg(), place),
        "read, decode the crop": lambda: graph._random_crop(jpeg(), CROP, stored, place),
        "read, decode the crop, flip, − mean, to float32": lambda: graph._train(
            jpeg(), plain, stored, place, output
        ),
        "read, decode a random part": part,
        "read, decode a random part, scale": lambda: graph._random_resized(jpeg(), CROP, place),
        "read, decode a random part, scale, flip, − mean, to float32": lambda: graph._train(
            jpeg(), scaled, stored, place, output
        ),
    }
