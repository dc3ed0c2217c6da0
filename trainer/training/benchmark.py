"""Measure what limits training here: loader, model and gradient exchange, alone and together."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from pipeline.dataset.dataset import Dataset
from pipeline.loader.loader import Batch, Loader
from pipeline.loader.placement import BackendName, has_dali
from pipeline.loader.stats import LoaderStats
from trainer.data import RepeatedBatch, TrainData, noise
from trainer.distributed.env import DistEnv, all_most, all_sum
from trainer.models.classifier import Classifier
from trainer.optim.optimizers import build_optimizer
from trainer.precision import choose_precision
from trainer.training.checks import check_job
from trainer.training.options import TrainJob
from trainer.training.progress import device_mb, resident_mb
from trainer.training.setup import BUCKET_MB, build_classifier, run_throwaway_step, wrap_ddp
from trainer.training.step import train_step

SECONDS = 6.0
"""Seconds for which each component is measured, but at least two steps."""

_WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Throughput and resources of one component, over all processes.

    Attributes:
        name: "loader (threads)", "loader (dali)", "model", "exchange" or "together".
        images_per_second: Images per second of this component alone, or of all "together".
        cores: CPU seconds used per second, without those of the loader's worker processes.
        host_mb: Sum of all processes' resident memory, MB; pages that they share are counted in each.
        device_mb: Used memory of the fullest GPU, MB, including that of DALI and CUDA; 0 on the CPU.
        loader: What the loader of process 0 did; None for "model" and "exchange".
    """

    name: str
    images_per_second: float
    cores: float
    host_mb: float
    device_mb: float
    loader: LoaderStats | None = None


@dataclass(frozen=True)
class Measured:
    """Result of a benchmark.

    Attributes:
        recipe: Name of the recipe.
        timings: Components in the order measured: loaders, of which the last is the one that training uses,
            the model, with several processes the exchange, and "together".
    """

    recipe: str
    timings: tuple[Timing, ...]

    @property
    def slowest(self) -> Timing:
        """The slowest component of training."""
        parts = {timing.name.split()[0]: timing for timing in self.timings[:-1]}  # the last loader
        return min(parts.values(), key=lambda timing: timing.images_per_second)


def measure(env: DistEnv, job: TrainJob, seconds: float = SECONDS) -> Measured:
    """Measure each component of training with a job's data, recipe and batch size; nothing is written.

    The loader is measured with each backend that is installed. All processes must call this; they measure
    together.

    Args:
        env: This process's environment.
        job: Data, recipe and loader options; its run folder is not touched.
        seconds: Duration of each measurement.

    Raises:
        UsageError: Data, recipe and number of processes do not fit together.
    """
    recipe, dataset = job.recipe, Dataset.open(job.data)
    batch_size = check_job(job, dataset, env.kind, env.world_size)
    classifier = build_classifier(recipe, dataset, env)
    with choose_precision(recipe, env.kind).training():
        timings = _measure_parts(env, job, dataset, classifier, _Timer(env, batch_size, seconds))
    return Measured(recipe.name, timings)


def _measure_parts(
    env: DistEnv, job: TrainJob, dataset: Dataset, classifier: Classifier, timer: "_Timer"
) -> tuple[Timing, ...]:
    recipe, batch_size = job.recipe, timer.batch_size
    chosen = job.loader_options.choose(env).backend
    backends: list[BackendName] = ["threads", "dali"] if has_dali() else ["threads"]
    timings = []
    # The backend that training uses is measured last, next to the model.
    for backend in sorted(backends, key=lambda name: name == chosen):
        loader_options = replace(job.loader_options, backend=backend)
        with TrainData(recipe, dataset, classifier, batch_size, env, loader_options) as train_data:
            loader = train_data.epoch(0)
            batches = _endless(loader)
            timings.append(
                timer.run(f"loader ({backend})", lambda: next(batches), loader)  # noqa: B023 - run at once
            )

    step = _Step(job, classifier, env, batch_size)
    synthetic = noise(recipe, batch_size, len(dataset.classes), env)
    timings.append(timer.run("model", lambda: step(synthetic)))
    if env.world_size > 1:
        timings.append(timer.run("exchange", _Exchange(classifier)))
    with TrainData(recipe, dataset, classifier, batch_size, env, job.loader_options) as train_data:
        loader = train_data.epoch(0)
        batches = _endless(loader)
        shared = _Step(job, classifier, env, batch_size, together=True)
        timings.append(timer.run("together", lambda: shared(next(batches)), loader))
    return tuple(timings)


class _Timer:
    """Runs a component for some seconds in all processes at once; sums up throughput, CPU and memory."""

    def __init__(self, env: DistEnv, batch_size: int, seconds: float) -> None:
        self._env, self.batch_size, self._seconds = env, batch_size, seconds

    def run(self, name: str, step: Callable[[], Any], loader: Loader | RepeatedBatch | None = None) -> Timing:
        for _ in range(_WARM_UP):
            step()
        steps = self._steps(step)
        before = loader.stats() if isinstance(loader, Loader) else None
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        self._wait()
        wall = time.perf_counter() - started
        throughput, cores, host = all_sum(
            torch.tensor(
                [steps * self.batch_size / wall, (time.process_time() - cpu) / wall, resident_mb()],
                dtype=torch.float64,
                device=self._env.device,
            )
        ).tolist()
        return Timing(
            name=name,
            images_per_second=throughput,
            cores=cores,
            host_mb=host,
            device_mb=all_most(device_mb(self._env), self._env),
            loader=loader.stats() - before if isinstance(loader, Loader) and before else None,
        )

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
        self, job: TrainJob, classifier: Classifier, env: DistEnv, batch_size: int, *, together: bool = False
    ) -> None:
        recipe = job.recipe
        self._recipe, self._env, self._classifier = recipe, env, classifier
        processes = env if together else DistEnv(kind=env.kind)
        self._model = wrap_ddp(classifier, recipe, processes, cuda_graphs=job.cuda_graphs)
        self._precision = choose_precision(recipe, env.kind)
        self._scaler = self._precision.new_scaler(env.device)
        run_throwaway_step(self._model, classifier, recipe, batch_size, env, self._precision, lambda _: None)
        self._optimizer = build_optimizer(classifier.model, recipe)
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.lr * 1e-6  # the same work, but nothing diverges

    def __call__(self, batch: Batch) -> None:
        images = self._classifier.inputs(batch.images)
        labels = batch.labels.to(self._env.device)
        train_step(self._model, self._optimizer, images, labels, self._recipe, self._precision, self._scaler)


class _Exchange:
    """All-reduces as many bytes as there are gradients, in buckets like DDP."""

    def __init__(self, classifier: Classifier) -> None:
        weights = [p for p in classifier.parameters() if p.requires_grad]
        count = sum(p.numel() for p in weights)
        like = weights[0]
        gradients = torch.zeros(count, device=like.device, dtype=like.dtype)
        self._buckets = torch.split(gradients, BUCKET_MB * 2**20 // like.element_size())

    def __call__(self) -> None:
        for work in [dist.all_reduce(bucket, async_op=True) for bucket in self._buckets]:
            work.wait()


def _endless(loader: Loader | RepeatedBatch) -> Iterator[Batch]:
    while True:
        yield from loader
