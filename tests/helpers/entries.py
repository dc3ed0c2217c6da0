"""Functions that tests run in spawned processes, which import them from here."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import Dataset, EvalView, Loader
from pipeline.errors import RunError
from trainer.callbacks.base import Callback
from trainer.distributed import comm_hooks
from trainer.distributed.env import DistEnv, gather_objects
from trainer.evaluation.evaluate import evaluate, evaluate_checkpoints
from trainer.evaluation.metrics import Metrics
from trainer.evaluation.predictions import Predictions
from trainer.models.alexnet import build_model
from trainer.optim.optimizers import build_optimizer, set_lrs
from trainer.precision import Precision
from trainer.recipe import Recipe
from trainer.runs.records import Ending, MetricsRow, StepMetrics, Weights
from trainer.training.options import TrainJob
from trainer.training.step import train_step
from trainer.training.trainer import train

FLOAT32 = Precision()


class Recorder(Callback):
    """A callback that records all calls, and can stop the run after an epoch's checkpoint."""

    def __init__(self, stop_after: int = 0) -> None:
        self.stop_after = stop_after
        self.facts: dict[str, str] = {}
        self.notes: list[str] = []
        self.losses: list[float] = []
        self.rows: list[MetricsRow] = []
        self.steps: list[StepMetrics] = []
        self.looks: list[Weights] = []
        self.endings: list[tuple[Ending, str]] = []
        self.wants_weights = False

    def on_start(self, facts: dict[str, str]) -> None:
        self.facts = facts

    def on_log(self, line: str) -> None:
        self.notes.append(line)

    def on_step(self, row: StepMetrics) -> None:
        self.steps.append(row)
        self.losses.append(row.loss)

    def on_weights(self, weights: Weights) -> None:
        self.looks.append(weights)

    def on_end(self, how: Ending, line: str) -> None:
        self.endings.append((how, line))

    def on_validation(self, row: MetricsRow, epochs: int) -> None:
        self.rows.append(row)

    def on_epoch(self, row: MetricsRow, epochs: int, best: bool) -> None:
        self.rows.append(row)
        if row.epoch == self.stop_after:
            raise RunError("stopped here by the test")


def run_job(env: DistEnv, job: TrainJob, stop_after: int = 0) -> list[str]:
    """Train; return the log messages. A process alone has one thread, as with `training_runs.start`."""
    if env.world_size == 1:
        torch.set_num_threads(1)
    recorder = Recorder(stop_after)
    train(env, job, [recorder])
    return recorder.notes


def without_dropout(model: nn.Sequential) -> nn.Sequential:
    """Replace dropout by the identity, so that the result does not depend on how a batch is split."""
    for name, module in model.named_children():
        if "Dropout" in type(module).__name__:
            setattr(model, name, nn.Identity())
    return model


def global_batches(data: Path, crop: int, steps: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` global batches of center crops, float64 with the mean subtracted: two batches in turn."""
    dataset = Dataset.open(data)
    mean = torch.tensor(dataset.statistics.mean).view(3, 1, 1)
    with Loader(dataset, "train", EvalView("center", crop), size) as loader:
        batches = [(b.images.double() - mean, b.labels) for b in loader]
    return [batches[step % 2] for step in range(steps)]


Trained = tuple[list[float], dict[str, torch.Tensor], bool]
"""Mean losses over all processes, weights, and whether all ranks have the same weights."""


def train_on_slices(env: DistEnv, recipes: list[Recipe], data: Path, steps: int) -> list[Trained]:
    """Train each recipe's network on this rank's slice of each batch."""
    torch.set_num_threads(1)
    return [_train_on_slices(env, recipe, data, steps) for recipe in recipes]


def _train_on_slices(env: DistEnv, recipe: Recipe, data: Path, steps: int) -> Trained:
    torch.manual_seed(recipe.seed + env.rank)  # DDP broadcasts rank 0's initial weights
    network = without_dropout(build_model(recipe.arch, 10, recipe.width, recipe.crop)).double()
    model = DistributedDataParallel(network) if env.world_size > 1 else network
    optimizer = build_optimizer(network, recipe)
    set_lrs(optimizer, recipe.lr, recipe.stage_at(0))
    share = recipe.batch_size // env.world_size
    mine = slice(env.rank * share, (env.rank + 1) * share)
    losses = []
    for images, labels in global_batches(data, recipe.crop, steps, recipe.batch_size):
        loss, *_ = train_step(model, optimizer, images[mine], labels[mine], recipe, FLOAT32)
        losses.append(loss)
    mean = torch.stack(losses)
    if env.world_size > 1:
        dist.all_reduce(mean)
    gathered = gather_objects({name: p.detach() for name, p in network.named_parameters()}, env)
    agree = all(torch.equal(gathered[0][name], other[name]) for other in gathered for name in other)
    return (mean / env.world_size).tolist(), gathered[0] if gathered else {}, agree


class LinearModel(nn.Module):
    """A linear classifier of the pixels, so that every sample has logits of its own."""

    def __init__(self, classes: int, crop: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.randn(3 * crop * crop, classes, generator=generator) / crop**2

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1) @ self.weight


def evaluate_everywhere(
    env: DistEnv, file: Path, data: Path
) -> tuple[list[Metrics], list[str], Predictions | None]:
    """Evaluate `LinearModel` and a checkpoint in batches of five: metrics, keys of all ranks, predictions."""
    torch.set_num_threads(1)
    dataset = Dataset.open(data)
    model = LinearModel(len(dataset.classes), 64)
    keys: list[str] = []
    with Loader(dataset, "val", EvalView("center", 64), 5, placement=env.placement) as loader:

        def recorded():
            for batch in loader:
                keys.extend(batch.keys)
                yield batch

        # The loader as `evaluate` uses it, but its keys are recorded.
        recording = type(
            "RecordingLoader",
            (),
            {"__iter__": lambda _: recorded(), "__getattr__": lambda _, n: getattr(loader, n)},
        )
        metrics = [evaluate([model], recording(), env)]
    for views in ("center", "ten-crop"):
        whole = evaluate_checkpoints(env, [file], data, "val", views, 5, predict=True)
        metrics.append(whole.metrics)
    everywhere = gather_objects((metrics, keys), env)
    assert all(other == metrics for other, _ in everywhere)  # all processes get the same result
    return metrics, [key for _, keys in everywhere for key in keys], whole.predictions


def run_compressed(env: DistEnv, *jobs: TrainJob) -> list[str]:
    """Train one job after the other, with PowerSGD after the second step; return the last one's messages."""
    comm_hooks._FIRST_STEPS = 2
    torch.set_num_threads(1)
    for job in jobs:
        recorder = Recorder()
        train(env, job, [recorder])
    return recorder.notes


def run_with_other_data(env: DistEnv, job: TrainJob, other: Path) -> None:
    """The second process trains on another dataset."""
    train(env, replace(job, data=other if env.rank else job.data))
