"""Functions that the tests start in other processes: a spawned worker imports them from here."""

import atexit
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import Dataset, EvalView, Loader
from pipeline.errors import RunError, UsageError
from trainer.distributed import comm_hooks, failures
from trainer.distributed.consensus import Agreement
from trainer.distributed.env import World, gather_objects
from trainer.distributed.failures import error_to_text, raise_together, refuse_unlike
from trainer.evaluation.evaluate import evaluate, evaluate_checkpoints
from trainer.evaluation.metrics import Metrics, Tally
from trainer.evaluation.predictions import Predictions
from trainer.models.alexnet import build_model
from trainer.optim.optimizers import build_optimizer, set_rates
from trainer.recipe import Recipe
from trainer.runs.records import Ending, EpochRow, StepRow, Weights
from trainer.training.options import Job
from trainer.training.precision import Arithmetic
from trainer.training.step import train_step
from trainer.training.trainer import train

FLOAT32 = Arithmetic(torch.float32, "cpu")


class Recorder:
    """A reporter that keeps what it is told, and can end the run after an epoch's checkpoint."""

    def __init__(self, stop_after: int = 0) -> None:
        self.stop_after = stop_after
        self.facts: dict[str, str] = {}
        self.notes: list[str] = []
        self.losses: list[float] = []
        self.rows: list[EpochRow] = []
        self.steps: list[StepRow] = []
        self.looks: list[Weights] = []
        self.endings: list[tuple[Ending, str]] = []
        self.wants_weights = False

    def started(self, facts: dict[str, str]) -> None:
        self.facts = facts

    def note(self, line: str) -> None:
        self.notes.append(line)

    def step(self, row: StepRow) -> None:
        self.steps.append(row)
        self.losses.append(row.loss)

    def weights(self, weights: Weights) -> None:
        self.looks.append(weights)

    def ended(self, how: Ending, line: str) -> None:
        self.endings.append((how, line))

    def epoch(self, row: EpochRow, epochs: int, best: bool) -> None:
        self.rows.append(row)
        if row.epoch == self.stop_after:
            raise RunError("stopped here by the test")


def run_job(world: World, job: Job, stop_after: int = 0) -> list[str]:
    """Train; return the notes."""
    torch.set_num_threads(1)
    recorder = Recorder(stop_after)
    train(world, job, recorder)
    return recorder.notes


def without_dropout(net: nn.Sequential) -> nn.Sequential:
    """Replace dropout by the identity, which is the same for every split of a batch."""
    for name, module in net.named_children():
        if "Dropout" in type(module).__name__:
            setattr(net, name, nn.Identity())
    return net


def global_batches(data: Path, crop: int, steps: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two fixed global batches of a dataset's crops in turn, float64, mean subtracted."""
    dataset = Dataset.open(data)
    mean = torch.tensor(dataset.statistics.mean).view(3, 1, 1)
    with Loader(dataset, "train", EvalView("center", crop), size) as loader:
        batches = [(b.images.double() - mean, b.labels) for b in loader]
    return [batches[step % 2] for step in range(steps)]


def train_on_slices(
    world: World, recipe: Recipe, data: Path, steps: int
) -> tuple[list[float], dict[str, torch.Tensor], bool]:
    """Train on each global batch's slice; return mean losses, weights, and whether all ranks' agree."""
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed + world.rank)  # DDP hands rank 0's initial weights to all
    net = without_dropout(build_model(recipe.arch, 10, recipe.width, recipe.crop)).double()
    model = DistributedDataParallel(net) if world.size > 1 else net
    optimizer = build_optimizer(net, recipe)
    set_rates(optimizer, recipe.rate, recipe.stage_at(0))
    share = recipe.batch_size // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    losses = []
    for images, labels in global_batches(data, recipe.crop, steps, recipe.batch_size):
        loss, _ = train_step(model, optimizer, images[mine], labels[mine], recipe, FLOAT32)
        losses.append(loss)
    mean = torch.stack(losses)
    if world.size > 1:
        dist.all_reduce(mean)
    gathered = gather_objects({name: p.detach() for name, p in net.named_parameters()}, world)
    agree = all(torch.equal(gathered[0][name], other[name]) for other in gathered for name in other)
    return (mean / world.size).tolist(), gathered[0] if gathered else {}, agree


class Answers(nn.Module):
    """A net whose logits are made of the pixels themselves, so that every sample has its own."""

    def __init__(self, classes: int, crop: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.randn(3 * crop * crop, classes, generator=generator) / crop**2

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1) @ self.weight


def evaluate_everywhere(
    world: World, file: Path, data: Path
) -> tuple[list[Metrics], list[str], Predictions | None]:
    """Of `Answers` and a checkpoint in batches of five: metrics, the keys that all ranks saw, predictions."""
    torch.set_num_threads(1)
    dataset = Dataset.open(data)
    net = Answers(len(dataset.classes), 64)
    keys: list[str] = []
    with Loader(dataset, "val", EvalView("center", 64), 5, placement=world.placement, keys=True) as loader:

        def noted():
            for batch in loader:
                keys.extend(batch.keys)
                yield batch

        # The loader as `evaluate` uses it, with an ear on its keys.
        listening = type(
            "Listening", (), {"__iter__": lambda _: noted(), "__getattr__": lambda _, n: getattr(loader, n)}
        )
        metrics = [evaluate([net], listening(), world)]
    for views in ("center", "ten-crop"):
        whole = evaluate_checkpoints(world, [file], data, "val", views, 5, predict=True)
        metrics.append(whole.metrics)
    everywhere = gather_objects((metrics, keys), world)
    assert all(other == metrics for other, _ in everywhere)  # all processes get the same result
    return metrics, [key for _, keys in everywhere for key in keys], whole.predictions


def tally_share(world: World, rows: np.ndarray, labels: np.ndarray) -> tuple[Tally, bool]:
    """Every other row counted by each of two processes, merged; and whether both have the same metrics."""
    tally = Tally(rows.shape[1])
    mine = slice(world.rank, None, world.size)
    tally.add(torch.from_numpy(rows[mine].copy()), torch.from_numpy(labels[mine].copy()))
    tally.merge()
    everywhere = gather_objects(tally.metrics(), world)
    return tally, all(metrics == tally.metrics() for metrics in everywhere)


def describe(world: World, *args: object) -> tuple[object, ...]:
    """What a process knows of itself, and its sum over all."""
    total = torch.tensor([float(world.rank + 1)])
    if world.size > 1:
        dist.all_reduce(total)
    return world, args, total.item(), gather_objects(world.rank, world)


def refuse(world: World, rank: int) -> None:
    """One rank refuses the input while the others wait for it."""
    if world.rank == rank:
        raise UsageError("recipe: of another kind: not usable")
    dist.barrier()


def fail(world: World, rank: int) -> None:
    """One rank fails while the others wait for it, and ends a second after they have lost it."""
    if world.rank == rank:
        if world.size > 1:
            dist.destroy_process_group()
            atexit.register(time.sleep, 1.0)
        raise RunError("the disk is full")
    dist.barrier()


def stumble(world: World, rank: int) -> None:
    """One rank meets a bug while the others wait for it."""
    if world.rank == rank:
        raise KeyError("a bug")
    dist.barrier()


def die(world: World, rank: int) -> None:
    """One rank is killed while the others wait for it."""
    if world.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def wish(world: World, wishes: dict[int, tuple[int, int]], calls: int) -> list[list[list[bool]]]:
    """Make `calls` calls of an agreement on two things, where a rank wishes (at call, which); all answers."""
    agreement = Agreement(world)
    at, which = wishes.get(world.rank, (0, 0))
    answers = [
        agreement(*(call == at and thing == which for thing in range(2))) for call in range(1, calls + 1)
    ]
    agreement.finish()
    return gather_objects(answers, world)


def run_compressed(world: World, job: Job) -> None:
    """Train with PowerSGD from its second update on."""
    comm_hooks._FIRST_UPDATES = 2
    torch.set_num_threads(1)
    train(world, job, Recorder())


def hang(world: World, rank: int, how: str) -> int:
    """One rank stops within the fourth update, or sleeps before it, if it was not started again.

    Silence of six seconds is enough; returns the restarts.
    """
    failures._SILENT_SECONDS = 6.0
    with failures.Watch(world, 2.0) as seen:
        for step in range(10):
            seen.at(step, "waiting for data")
            bad = world.rank == rank and step == 3 and not world.restarts
            if bad and how == "sleep":
                time.sleep(1000)
            seen.at(step, "training")
            if bad:
                time.sleep(2)  # a sign of it is out
                os.kill(os.getpid(), signal.SIGSTOP)
            dist.barrier()
    return world.restarts


def unlike(world: World) -> None:
    """The second process has another torch."""
    refuse_unlike(world, {"torch": "2.12" if world.rank else "2.13", "numpy": "2"})


def die_once(world: World, marks: Path, rank: int) -> tuple[int, int]:
    """One rank is killed at the first try; return the restarts and the tries."""
    (marks / f"{world.rank}-{world.restarts}").touch()
    if world.rank == rank and not world.restarts:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    return world.restarts, len(list(marks.iterdir()))


def refuse_every_time(world: World, marks: Path) -> None:
    """The input is bad, and a restart would not mend it."""
    (marks / f"{world.rank}-{world.restarts}").touch()
    dist.barrier()
    raise UsageError("the input is bad")


def run_with_other_data(world: World, job: Job, other: Path) -> None:
    """The second process trains on another dataset."""
    train(world, replace(job, data=other if world.rank else job.data), Recorder())


def fail_together(world: World, folder: Path) -> None:
    """The second of three processes fails; each writes down what it is told."""

    def work() -> None:
        if world.rank == 1:
            raise UsageError("process 1 cannot")

    try:
        raise_together(work, world)
    except UsageError as error:
        (folder / str(world.rank)).write_text(error_to_text(error))
        dist.barrier()
        raise
