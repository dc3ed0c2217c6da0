"""The training run, from top to bottom.

Shapes: B batch of this process, S crop.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.dataset import Dataset
from pipeline.errors import RunError, UsageError
from pipeline.files import remove_leftovers
from pipeline.seeds import derive_seed
from trainer import checkpoint, run
from trainer.classifier import Classifier, new_classifier
from trainer.distributed import World, all_most, all_sum, gather_objects, share_buffers
from trainer.evaluation import evaluate
from trainer.feed import Feed, Feeding, Wait, validation_loader
from trainer.optim import build_optimizer, check_layers, set_rates
from trainer.recipe import Recipe
from trainer.run import EpochRow, Progress
from trainer.schedule import Schedule

# Reading the loss waits for the device: often enough for a person, seldom enough to cost nothing.
_REPORT_EVERY = 10


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        data: the dataset's folder or address.
        out: the run's folder.
        recipe: what the result depends on, besides the data.
        resume: whether to continue the run in `out`.
        feeding: how the data comes.
        checkpoint_steps: updates between two checkpoints within an epoch, or None for those at its end
            alone.
    """

    data: str | Path
    out: Path
    recipe: Recipe
    resume: bool = False
    feeding: Feeding = field(default_factory=Feeding)
    checkpoint_steps: int | None = None


class Reporter(Protocol):
    """Is told on rank 0 how a run goes."""

    def started(self, facts: dict[str, str]) -> None:
        """Describe the run before its first step."""

    def note(self, line: str) -> None:
        """Say something that the user should know."""

    def step(self, epoch: int, done: int, total: int, loss: float, images_per_second: float) -> None:
        """Report an epoch's `done` steps of `total` and a recent loss."""

    def epoch(self, row: EpochRow, epochs: int, best: bool) -> None:
        """Report a finished epoch."""


def train(world: World, job: Job, reporter: Reporter) -> Progress:
    """Train a recipe on a dataset and keep the run in a folder.

    Every epoch ends with an evaluation, a line in metrics.jsonl, and the checkpoints `last.pt` and,
    where validation top-1 improved, `best.pt`.

    Args:
        world: this process among all; all call this with the same job.
        job: what to train.
        reporter: told of the progress on rank 0.

    Raises:
        UsageError: data, recipe and run folder that do not fit together.
        RunError: the loss is no longer finite, a damaged shard, or a full disk.
    """
    recipe = job.recipe
    dataset = Dataset.open(job.data)
    batch_size = share_of_batch(recipe, world.size)
    torch.manual_seed(derive_seed(recipe.seed, "init"))
    classifier = new_classifier(recipe, dataset).to(world.device)
    if recipe.channels_last:
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_layers(classifier.net, recipe)
    optimizer = build_optimizer(classifier.net, recipe)
    schedule = Schedule(recipe)
    progress = Progress()

    if job.resume and world.is_first:
        remove_leftovers(job.out)
    saved = run.read_last(job.out, recipe, dataset) if job.resume else None
    if job.resume and saved is None and world.is_first:
        reporter.note(f"{job.out}: stopped before its first epoch was over, starting again")
    if saved:
        checkpoint.refuse_other_spec(saved, classifier.spec, job.out / checkpoint.LAST)
        classifier.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        progress = msgspec.convert(saved["progress"], Progress)

    continued = saved is not None and run.same_processes(saved, world)
    feed = Feed(recipe, dataset, classifier, batch_size, world, job.feeding)
    val = validation_loader(recipe, dataset, batch_size, world, job.feeding)
    left_out = 0
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)  # of an epoch: loss, correct, images
    with feed, val:
        if saved:
            left_out = feed.restore(saved["ranks"][world.rank if continued else 0], progress.epoch)
            left_out = int(all_most(left_out, world))  # where one cannot go on with an epoch, none does
            sums += run.sums_of(saved, world)
        else:
            feed.epoch(progress.epoch)  # refuses impossible batches and crops before anything is written
        if world.is_first:
            if saved is None:
                run.create(job.out, recipe, dataset, world, over_unfinished=job.resume)
            reporter.started(_facts(job, dataset, classifier, world))
            if saved and (difference := run.difference(saved, world)):
                reporter.note(difference)
            if left_out:
                reporter.note(
                    f"epoch {progress.epoch + 1} was begun by other processes: its last {left_out:,} "
                    "pictures are left out"
                )
        model = distribute(classifier, recipe, world)
        prime(model, classifier, recipe, batch_size, world, reporter.note)
        torch.manual_seed(derive_seed(recipe.seed, "dropout", world.rank, progress.epoch))
        if saved and continued:
            feed.restore_generators(saved["ranks"][world.rank])

        def save() -> None:
            ranks = gather_objects(feed.rank_state() | {"sums": sums.tolist()}, world)
            if world.is_first:
                checkpoint.save(
                    job.out / checkpoint.LAST,
                    classifier,
                    recipe=recipe.to_toml(),
                    dataset=dataset.fingerprint,
                    optimizer=optimizer.state_dict(),
                    schedule=schedule.state_dict(),
                    progress=asdict(progress),
                    machine=run.machine(world),
                    ranks=ranks,
                )

        for epoch in range(progress.epoch, recipe.epochs):
            started = time.perf_counter()
            loader = feed.epoch(epoch)
            stage, steps, first, before = recipe.stage_at(epoch), len(loader), loader.batch, progress.steps
            rate = schedule.rate(epoch + first / steps)
            wait = Wait()
            # What other processes began, these cannot end: they go on from its evaluation.
            for step, batch in enumerate(() if left_out else wait.over(loader), first):
                rate = schedule.rate(epoch + step / steps)
                set_rates(optimizer, rate, stage)
                images = batch.images.to(world.device, torch.float32)
                labels = batch.labels.to(world.device)
                loss, correct = train_step(model, optimizer, images, labels, recipe)
                sums += torch.stack([loss * batch_size, correct, torch.full_like(loss, batch_size)])
                progress.steps += 1
                if world.is_first and (step % _REPORT_EVERY == 0 or step + 1 == steps):
                    _refuse_diverged(float(loss), epoch, recipe)
                    speed = (step + 1 - first) * recipe.batch_size / (time.perf_counter() - started)
                    reporter.step(epoch + 1, step + 1, steps, float(loss), speed)
                if job.checkpoint_steps and progress.steps % job.checkpoint_steps == 0 and step + 1 < steps:
                    save()
            loss_sum, correct_sum, seen = all_sum(sums).tolist()
            sums.zero_()
            trained = time.perf_counter()
            _refuse_diverged(loss_sum / seen, epoch, recipe)

            share_buffers(classifier)
            metrics = evaluate([classifier], val, world, dtype_of(recipe))
            schedule.end_epoch(1.0 - metrics.top1)
            progress.epoch = epoch + 1
            best = metrics.top1 > progress.best_top1
            progress.best_top1 = max(progress.best_top1, metrics.top1)
            row = EpochRow(
                epoch=epoch + 1,
                steps=progress.steps,
                rate=rate,
                train_loss=loss_sum / seen,
                train_top1=correct_sum / seen,
                val_loss=metrics.loss,
                val_top1=metrics.top1,
                val_top5=metrics.top5,
                train_seconds=trained - started,
                val_seconds=time.perf_counter() - trained,
                images_per_second=(progress.steps - before) * recipe.batch_size / (trained - started),
                data_wait=wait.seconds / (trained - started),
            )
            if world.is_first:
                run.add_metrics(job.out, row)
                # The best first: killed between the two, the run repeats this epoch and both are written.
                if best:
                    checkpoint.save(job.out / checkpoint.BEST, classifier)
            left_out = 0
            feed.epoch(epoch + 1)  # so that what is saved is the start of the next
            save()
            if world.is_first:
                reporter.epoch(row, recipe.epochs, best)
    return progress


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """One update from (B, 3, S, S) images and (B,) labels.

    Returns:
        The mean loss and the number of correct guesses, both scalars of one dtype that stay on the
        device: nothing here waits for it.
    """
    loss, logits = _forward(model, images, labels, recipe)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    correct = (logits.detach().argmax(dim=1) == labels).sum()
    return loss.detach(), correct.to(loss.dtype)


def _forward(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The mean loss and the logits (B, classes)."""
    with torch.autocast(images.device.type, dtype_of(recipe), enabled=recipe.precision != "float32"):
        logits = model(images)
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing), logits


def _refuse_diverged(loss: float, epoch: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise RunError(
            f"the loss became {loss} in epoch {epoch + 1}; checkpoints of earlier epochs are kept: start "
            f"again in another --out with a lower rate, such as --set rate={recipe.rate / 2:g}"
        )


def share_of_batch(recipe: Recipe, processes: int) -> int:
    """Return one process's part of the global batch.

    Raises:
        UsageError: it does not divide, or leaves too little for batch normalisation.
    """
    if recipe.batch_size % processes:
        fewer = next(n for n in range(processes, 0, -1) if recipe.batch_size % n == 0)
        larger = math.ceil(recipe.batch_size / processes) * processes
        raise UsageError(
            f"batch_size {recipe.batch_size} does not divide among {processes} processes; use {fewer}, or "
            f"--set batch_size={larger}"
        )
    if recipe.arch == "alexnet_bn" and recipe.batch_size == processes:
        raise UsageError(
            f"batch_size {recipe.batch_size} leaves one picture for each of {processes} processes, and batch "
            f"normalisation needs two; use --set batch_size={2 * processes} or more"
        )
    return recipe.batch_size // processes


def dtype_of(recipe: Recipe) -> torch.dtype:
    """The recipe's arithmetic as torch names it."""
    return torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32


def distribute(classifier: Classifier, recipe: Recipe, world: World) -> nn.Module:
    """The classifier as it is trained: compiled where the recipe says so, and one of several."""
    if recipe.compile:
        classifier.compile()
    if world.size == 1:
        return classifier
    devices = [world.local_rank] if world.kind == "gpu" else None
    return DistributedDataParallel(classifier, device_ids=devices)


def prime(
    model: nn.Module,
    classifier: Classifier,
    recipe: Recipe,
    batch_size: int,
    world: World,
    note: Callable[[str], None],
) -> None:
    """Run one forward and backward pass that changes nothing.

    DDP regroups its gradients after the first backward pass, so that a resumed run would add in
    another order than an uninterrupted one; and a compiler that does not work shows itself here.
    """
    buffers = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    images = torch.zeros(batch_size, 3, recipe.crop, recipe.crop, device=world.device)
    if recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=world.device)
    try:
        _forward(model, images, labels, recipe)[0].backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        if not recipe.compile or not _is_compiler_error(error):
            raise
        classifier._compiled_call_impl = None  # how torch itself tells compiled from eager
        if world.is_first:
            reason = " ".join(str(error).split())[:160]  # the first line may say no more than "raised:"
            note(f"torch.compile does not work here, going on without it: {reason}")
        _forward(model, images, labels, recipe)[0].backward()  # type: ignore[no-untyped-call]
    classifier.zero_grad(set_to_none=True)
    for name, buffer in classifier.named_buffers():
        buffer.copy_(buffers[name])


def _is_compiler_error(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _facts(job: Job, dataset: Dataset, classifier: Classifier, world: World) -> dict[str, str]:
    recipe = job.recipe
    parameters = sum(p.numel() for p in classifier.net.parameters())
    return {
        "recipe": f"{recipe.name}: {recipe.arch}, {recipe.epochs} epochs, batch {recipe.batch_size}",
        "network": f"width {recipe.width:g}, {parameters:,} parameters, {recipe.precision}",
        "data": f"{dataset.url}: {dataset.samples('train'):,} training and {dataset.samples('val'):,} "
        f"validation pictures, {len(dataset.classes)} classes",
        "processes": f"{world.size} x {world.kind.upper()}",
        "run": str(job.out),
    }
