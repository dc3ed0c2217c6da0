"""Compare the throughput of evaluation with that of its loader and of its model alone, on the same images.

    python benchmarks/evaluate.py --work /tmp/evaluate --json evaluate.json

Links the images below --source under --images distinct names, prepares them to 256 px, and then runs
three parts in turns, --rounds times each: an epoch of the loader, the evaluation of as many batches that are
already in memory, and evaluation as `alexnet-eval` does it. The start of the loader's pipeline is included.
On the CPU loader and model share the cores, so the upper bound of evaluation is 1 / (1/loader + 1/model); on
a GPU it is the slower of the two. --data evaluates a prepared dataset instead.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import common
from common import BenchmarkError

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `alexnet-eval` does, before torch is imported

import torch

from pipeline import Batch, Dataset, EvalView, Loader
from trainer.data import LoaderOptions
from trainer.distributed.env import DistEnv
from trainer.evaluation.evaluate import measure
from trainer.evaluation.predictions import PredictionCollector
from trainer.models.classifier import Classifier, new_classifier
from trainer.recipe import Recipe

_TARGET = {"cpu": 0.90, "gpu": 0.95}
_TRAINING_IMAGES = 64


class HeldBatches:
    """A stand-in for a loader whose batches are in memory: it yields the loader's first batch repeatedly."""

    def __init__(self, loader: Loader) -> None:
        self.dataset, self.split, self.samples = loader.dataset, loader.split, loader.samples
        self.batch_size = loader.batch_size
        first = next(iter(loader))
        self._full = replace(first, images=first.images.clone())

    def __iter__(self) -> Iterator[Batch]:
        full = self._full
        for start in range(0, self.samples, self.batch_size):
            count = min(self.batch_size, self.samples - start)
            if count == len(full.labels):
                yield full
            else:
                yield Batch(full.images[:count], full.labels[:count], full.keys[:count])


def main() -> int:
    options = _options()
    env = DistEnv(kind=options.device)
    with common.work_folder(options.work) as work:
        common.print_facts(common.versions("alexnet-toolkit", "torch", "numpy", "nvidia-dali-cuda130"))
        if env.kind == "gpu":
            print(f"GPU: {torch.cuda.get_device_name(env.device)}\n")
        dataset = Dataset.open(options.data) if options.data else _prepared(options, work)
        model = _model(options, dataset).to(env.device)
        throughputs = {}
        for views in options.views:
            throughputs[views] = _measure(model, dataset, views, options, env)
        met = _report(throughputs, len(dataset.samples(options.split)), options)
        common.save_json(options.json, **{"images/s": throughputs})
    return 0 if met else 1


def _prepared(options: argparse.Namespace, work: Path) -> Dataset:
    """Prepare a dataset of 256 px squares with --images validation images."""
    fraction = options.images / (options.images + _TRAINING_IMAGES)
    images = options.images + _TRAINING_IMAGES
    out = common.fresh(work / "dataset")
    return Dataset.open(common.prepare(options.source, work, out, images, "--val-fraction", f"{fraction}"))


def _model(options: argparse.Namespace, dataset: Dataset) -> Classifier:
    torch.manual_seed(0)
    recipe = Recipe(name="benchmark", arch=options.arch, epochs=1, lr=0.1, width=options.width, compile=False)
    return new_classifier(recipe, dataset)


def _measure(
    model: Classifier, dataset: Dataset, views: str, options: argparse.Namespace, env: DistEnv
) -> dict[str, list[float]]:
    """Return the images per second of each part in each round."""

    def new_loader() -> Loader:
        return Loader(
            dataset,
            options.split,
            EvalView(views, model.spec.crop),  # type: ignore[arg-type]
            options.batch_size,
            placement=LoaderOptions().choose(env).placement,
        )

    def load() -> None:
        with new_loader() as loader:
            for batch in loader:
                last = batch
            if last.images.is_cuda:
                torch.cuda.synchronize()

    def compute() -> None:
        measure([model], held, env, collector=PredictionCollector())  # type: ignore[arg-type]

    def evaluate() -> None:
        with new_loader() as loader:
            measure([model], loader, env, collector=PredictionCollector())

    with new_loader() as loader:
        held = HeldBatches(loader)
    parts: dict[str, Callable[[], None]] = {"loader": load, "model": compute, "evaluation": evaluate}

    def throughput(part: Callable[[], None]) -> float:
        started = time.perf_counter()
        part()
        return len(dataset.samples(options.split)) / (time.perf_counter() - started)

    for part in parts.values():
        part()  # warms up
    timed = {name: partial(throughput, part) for name, part in parts.items()}
    return common.take_turns(
        timed, options.rounds, lambda name, found: f"{views}, {name}: {found:,.0f} images/s"
    )


def _bound(loader: float, model: float, device: str) -> float:
    return min(loader, model) if device == "gpu" else 1 / (1 / loader + 1 / model)


def _report(throughputs: dict[str, dict[str, list[float]]], images: int, options: argparse.Namespace) -> bool:
    network = f"{options.arch} at width {options.width:g}, {options.device.upper()}"
    print(
        f"{network}, {images:,} images, batches of {options.batch_size}; medians of {options.rounds} rounds "
        "(minimum–maximum)\n"
    )
    bound = "min(loader, model)" if options.device == "gpu" else "1 / (1/loader + 1/model)"
    header = [
        "images/s",
        "loader alone",
        "model alone",
        "evaluation",
        bound,
        "evaluation to bound",
        "target",
    ]
    rows, met = [], True
    for views, found in throughputs.items():
        # Compare each round with its own bound: the machine's speed drifts between rounds.
        shares = [
            together / _bound(loader, model, options.device)
            for loader, model, together in zip(*found.values(), strict=True)
        ]
        alone = zip(found["loader"], found["model"], strict=True)
        limits = [_bound(loader, model, options.device) for loader, model in alone]
        share = statistics.median(shares)
        target = _TARGET[options.device] if views == "center" else None
        met = met and (target is None or share >= target)
        rows.append(
            [
                views,
                *(common.spread(values, 1) for values in found.values()),
                f"{statistics.median(limits):,.1f}",
                common.spread(shares, 3),
                f"≥ {target:.2f}" if target else "–",
            ]
        )
    print(common.markdown(header, rows))
    return met


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__, "source", "rounds", "work", "json")
    parser.set_defaults(rounds=5)
    parser.add_argument("--data", type=Path, help="prepared dataset to evaluate instead of --source")
    parser.add_argument("--split", default="val", help="split of the dataset")
    parser.add_argument("--images", type=int, default=2000, help="number of images to evaluate")
    parser.add_argument("--arch", default="alexnet", help="architecture of the network")
    parser.add_argument("--width", type=float, default=1.0, help="width factor of the network")
    parser.add_argument(
        "--views", nargs="+", default=["center"], help="crops to measure: center, ten-crop, full-resize"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch")
    parser.add_argument("--device", choices=["cpu", "gpu"], default=None, help="device to evaluate on")
    options = common.checked(parser)
    options.device = options.device or ("gpu" if torch.cuda.is_available() else "cpu")
    if options.device == "gpu" and not torch.cuda.is_available():
        raise BenchmarkError("--device gpu: torch finds no GPU on this machine")
    return options


if __name__ == "__main__":
    common.finish(main)
