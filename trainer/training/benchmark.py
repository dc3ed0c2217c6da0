"""Measure what limits training here: loader, model and gradient exchange, alone and together."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.dataset.dataset import Dataset
from pipeline.loader.loader import Batch, Loader
from pipeline.loader.placement import Device
from pipeline.seeds import derive_seed
from trainer.data import RepeatedBatch, TrainData
from trainer.distributed.env import DistEnv, all_most, all_sum
from trainer.models.classifier import Classifier, new_classifier
from trainer.optim.optimizers import build_optimizer
from trainer.recipe import Recipe
from trainer.training.options import TrainJob
from trainer.training.precision import choose_precision, cpu_has_bfloat16
from trainer.training.progress import device_mb, resident_mb
from trainer.training.setup import BUCKET_MB, local_batch_size, run_throwaway_step, wrap_ddp
from trainer.training.step import train_step

SECONDS = 6.0
"""Seconds for which each component is measured, but at least two steps."""

_WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Throughput and resources of one component, over all processes.

    Attributes:
        name: "loader (cpu)", "loader (hybrid)", "loader (gpu)", "model", "exchange" or "together".
        images_per_second: Images per second of this component alone, or of all "together".
        cores: CPU seconds used per second.
        host_mb: Sum of all processes' resident memory, MB; pages that they share are counted in each.
        device_mb: Used memory of the fullest GPU, MB, including that of DALI and CUDA; 0 on the CPU.
    """

    name: str
    images_per_second: float
    cores: float
    host_mb: float
    device_mb: float


@dataclass(frozen=True)
class Measured:
    """Result of a benchmark.

    Attributes:
        recipe: Name of the recipe.
        timings: Components in the order measured, "together" last.
        advice: One sentence: which component limits, by how much, and which option helps.
    """

    recipe: str
    timings: tuple[Timing, ...]
    advice: str


def measure(env: DistEnv, job: TrainJob, seconds: float = SECONDS) -> Measured:
    """Measure each component of training with a job's data, recipe and batch size; nothing is written.

    On GPUs the loader is measured with every placement. All processes must call this; they measure together.

    Args:
        env: This process's environment.
        job: Data, recipe and loader options; its run folder is not touched.
        seconds: Duration of each measurement.

    Raises:
        UsageError: Data, recipe and number of processes do not fit together.
    """
    recipe, dataset = job.recipe, Dataset.open(job.data)
    batch_size = local_batch_size(recipe, env.world_size)
    torch.manual_seed(derive_seed(recipe.seed, "init"))
    classifier = new_classifier(recipe, dataset).to(env.device)
    if recipe.channels_last:
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    timer = _Timer(env, batch_size, seconds)

    chosen = job.loader_options.placement(env).device
    devices: list[Device] = ["cpu", "hybrid", "gpu"] if env.kind == "gpu" else ["cpu"]
    timings = []
    # The placement that training uses is measured last, next to the model.
    for device in sorted(devices, key=lambda d: d == chosen):
        loader_options = replace(job.loader_options, device=device)
        with TrainData(recipe, dataset, classifier, batch_size, env, loader_options) as train_data:
            batches = _endless(train_data.epoch(0))
            timings.append(timer.run(f"loader ({device})", lambda: next(batches)))  # noqa: B023 - run at once

    step = _Step(recipe, classifier, env, batch_size)
    timings.append(timer.run("model", step.on_synthetic))
    if env.world_size > 1:
        timings.append(timer.run("exchange", _Exchange(classifier)))
    with TrainData(recipe, dataset, classifier, batch_size, env, job.loader_options) as train_data:
        batches = _endless(train_data.epoch(0))
        shared = _Step(recipe, classifier, env, batch_size, together=True)
        timings.append(timer.run("together", lambda: shared(next(batches))))
    return Measured(recipe.name, tuple(timings), advise(timings, recipe, dataset, env.kind, chosen))


def advise(timings: list[Timing], recipe: Recipe, dataset: Dataset, kind: str, placement: Device) -> str:
    """Write one sentence: which component limits, by how much, and which option helps.

    Args:
        timings: As in `Measured`.
        recipe: The recipe measured.
        dataset: The dataset measured.
        kind: "gpu" or "cpu".
        placement: The loader's device in training.
    """
    loaders = {t.name[8:-1]: t.images_per_second for t in timings if t.name.startswith("loader")}
    throughputs = {t.name: t.images_per_second for t in timings if not t.name.startswith("loader")}
    together = throughputs.pop("together")
    throughputs["loader"] = loaders[placement]
    slowest = min(throughputs, key=lambda name: throughputs[name])
    helps = {
        "loader": _helps_loader(loaders, placement, dataset),
        "model": _helps_model(recipe, kind),
        "exchange": "a larger global batch exchanges less often (`--set batch_size=...`)",
    }[slowest]
    second = min(throughput for name, throughput in throughputs.items() if name != slowest)
    name = {"loader": "loader", "model": "model", "exchange": "gradient exchange"}[slowest]
    ratio = f"{second / throughputs[slowest]:.1f}"
    least = "as fast as" if ratio == "1.0" else f"{ratio} times as fast as"
    shared = " (they share the same cores)" if kind == "cpu" else ""
    return (
        f"The {name} limits this machine: all else is at least {least} it{shared}, and together they reach "
        f"{together / throughputs[slowest]:.0%} of it; {helps}."
    )


def _helps_loader(loaders: dict[str, float], placement: Device, dataset: Dataset) -> str:
    best = max(loaders, key=lambda name: loaders[name])
    if loaders[best] > 1.1 * loaders[placement]:
        return f"`--placement {best}` is {loaders[best] / loaders[placement]:.1f} times as fast"
    if dataset.image.mode == "original":
        return f"images stored at {dataset.image.size} px decode faster (`alexnet-prep shard` by default)"
    if dataset.store.local is None:
        return "shards on a local disk are read faster (`--cache DIR`)"
    return "more cores for each process (`--threads`, or a machine that has them) help"


def _helps_model(recipe: Recipe, kind: str) -> str:
    if not recipe.compile:
        return "`--set compile=true` makes it faster once it has compiled"
    if recipe.precision == "float32" and (kind == "gpu" or cpu_has_bfloat16()):
        return "`--set precision=bfloat16` makes it faster, with other results"
    if not recipe.channels_last:
        return "`--set channels_last=true` makes it faster"
    return f"more {'GPUs (`--gpus`)' if kind == 'gpu' else 'cores, or a GPU,'} would help"


class _Timer:
    """Runs a component for some seconds in all processes at once; sums up throughput, CPU and memory."""

    def __init__(self, env: DistEnv, batch_size: int, seconds: float) -> None:
        self._env, self._batch_size, self._seconds = env, batch_size, seconds

    def run(self, name: str, step: Callable[[], Any]) -> Timing:
        for _ in range(_WARM_UP):
            step()
        steps = self._steps(step)
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        self._wait()
        wall = time.perf_counter() - started
        throughput, cores, host = all_sum(
            torch.tensor(
                [steps * self._batch_size / wall, (time.process_time() - cpu) / wall, resident_mb()],
                dtype=torch.float64,
                device=self._env.device,
            )
        ).tolist()
        return Timing(name, throughput, cores, host, all_most(device_mb(self._env), self._env))

    def _steps(self, step: Callable[[], Any]) -> int:
        """Find how many steps take about the given time.

        The number is the same in all processes, since a step may contain collectives. A single step is not
        enough to measure by: a loader has batches ready, and another process may be late.
        """
        tried = 1
        while True:
            self._wait()
            started = time.perf_counter()
            for _ in range(tried):
                step()
            self._wait()
            longest = all_most(time.perf_counter() - started, self._env)
            if longest > self._seconds / 8:
                return max(2, round(self._seconds * tried / longest))
            tried *= 2

    def _wait(self) -> None:
        if self._env.kind == "gpu":
            torch.cuda.synchronize()
        if self._env.world_size > 1:
            dist.barrier()


class _Step:
    """A training step of this process alone, or with `together` of all, which exchange gradients."""

    def __init__(
        self, recipe: Recipe, classifier: Classifier, env: DistEnv, batch_size: int, *, together: bool = False
    ) -> None:
        self._recipe, self._env = recipe, env
        self._model = wrap_ddp(classifier, recipe, env if together else DistEnv(kind=env.kind))
        self._precision = choose_precision(recipe, env.kind)
        self._scaler = self._precision.new_scaler()
        run_throwaway_step(self._model, classifier, recipe, batch_size, env, self._precision, lambda _: None)
        self._optimizer = build_optimizer(classifier.model, recipe)
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.lr * 1e-6  # the same work, but nothing diverges
        shape = (batch_size, 3, recipe.crop, recipe.crop)
        images = torch.randn(shape, device=env.device)
        if recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        classes = len(classifier.spec.classes)
        labels = torch.randint(classes, (batch_size,), device=env.device)
        self._synthetic = images, labels

    def __call__(self, batch: Batch) -> None:
        self._update(batch.images.to(self._env.device, torch.float32), batch.labels)

    def on_synthetic(self) -> None:
        self._update(*self._synthetic)

    def _update(self, images: Tensor, labels: Tensor) -> None:
        labels = labels.to(self._env.device)
        train_step(self._model, self._optimizer, images, labels, self._recipe, self._precision, self._scaler)


class _Exchange:
    """All-reduces as many bytes as there are gradients, in buckets like DDP."""

    def __init__(self, classifier: Classifier) -> None:
        weights = [p for p in classifier.parameters() if p.requires_grad]
        count = sum(p.numel() for p in weights)
        like = weights[0]
        gradients = torch.zeros(count, device=like.device, dtype=like.dtype)
        self._buckets = torch.split(gradients, BUCKET_MB * 2**20 // 4)

    def __call__(self) -> None:
        for work in [dist.all_reduce(bucket, async_op=True) for bucket in self._buckets]:
            work.wait()


def _endless(loader: Loader | RepeatedBatch) -> Iterator[Batch]:
    while True:
        yield from loader
