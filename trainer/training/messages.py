"""Log messages of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.dataset.dataset import Dataset
from pipeline.errors import RunError
from pipeline.loader.order import lanes_of
from pipeline.text import number_of
from trainer.distributed.env import DistEnv
from trainer.models.classifier import Classifier
from trainer.precision import Precision, is_out_of_memory
from trainer.runs import run_folder
from trainer.runs.checkpoint import LAST
from trainer.runs.records import MetricsRow, Progress
from trainer.training.options import TrainJob, TrainResult


def facts(
    job: TrainJob, dataset: Dataset, classifier: Classifier, env: DistEnv, precision: Precision
) -> dict[str, str]:
    """Describe a run for the head of its log: title → text."""
    recipe = job.recipe
    images = len(dataset.samples("train"))
    parameters = sum(p.numel() for p in classifier.model.parameters())
    reason = "as the data has no split 'val'" if job.validation.enabled else "by --no-val"
    validation = f"none, {reason}: the last checkpoint counts as the best"
    if job.validates(dataset):
        dtype = str(classifier.dtype).removeprefix("torch.")
        validation = f"{len(dataset.samples('val')):,} images in {dtype}, {job.validation}"
    mixed, fewer = "", lanes_of(recipe.batch_size, shuffled=True)
    lanes = lanes_of(recipe.batch_size, shuffled=not dataset.manifest.adopted)
    if lanes > fewer:
        mixed = f"; not shuffled when sharded, so each batch is from {lanes} places instead of {fewer}"
    backend, place, why = job.loader_options.choose(env)
    shared = backend == "threads" and place.worker_count
    workers = f", in {number_of(place.worker_count, 'worker')}" if shared else ""
    return {
        "recipe": f"{recipe.name}: {recipe.arch}, {recipe.epochs} epochs, batch {recipe.batch_size}",
        "network": f"width {recipe.width:g}, {parameters:,} parameters, {precision}",
        "data": f"{dataset.url}: {images:,} images, {len(dataset.classes)} classes{mixed}",
        "validation": validation,
        "loader": f"{backend}, as {why}; {number_of(place.thread_count, 'thread')} each{workers}",
        "processes": f"{env.world_size} x {env.kind.upper()}",
        "run": str(job.out),
    }


def dropped_errors(saved: dict[str, Any], env: DistEnv) -> str:
    """Return the log line on PowerSGD's errors that are dropped, being of other processes; or ""."""
    carried = any(rank.get("compression", {}).get("errors") for rank in saved["ranks"])
    if not carried or run_folder.same_processes(saved, env):
        return ""
    return (
        "the compression errors that PowerSGD carried over are dropped: they belong to the gradients of "
        f"{len(saved['ranks'])} {saved['machine']['device'].upper()} processes"
    )


def overflows(row: MetricsRow) -> str:
    """Return the log line on the steps of an epoch whose float16 gradients overflowed."""
    steps = f"{row.overflows:,} update{'' if row.overflows == 1 else 's'}"
    return f"epoch {row.epoch}: {steps} left out, as float16 gradients overflowed; the loss scale was halved"


MOST_OVERFLOWS = 50
"""Steps in a row whose float16 gradients may overflow before the run ends.

Each of them halves the loss scale, which is 65,536 at first and is doubled after 2,000 steps without one.
After fifty it is near 2^-34, and scaled gradients are so small that only infinite ones still overflow.
"""


def refuse_overflows(job: TrainJob, progress: Progress, saved_steps: int, *, all_steps: bool = False) -> None:
    """Refuse to go on after too many steps in a row whose float16 gradients overflowed.

    Args:
        job: The run's job.
        progress: The run's progress.
        saved_steps: Steps of the run in its last checkpoint; 0 where there is none.
        all_steps: Whether gradients overflowed in all steps of an epoch.

    Raises:
        RunError: There are `MOST_OVERFLOWS` or more, or `all_steps`.
    """
    if progress.overflows_in_a_row >= MOST_OVERFLOWS or all_steps:
        what = f"float16 gradients of {progress.overflows_in_a_row} updates in a row are"
        raise diverged(job, what, progress.steps, progress.epoch + 1, saved_steps)


def diverged(job: TrainJob, what: str, step: int, epoch: int, saved_steps: int) -> RunError:
    """Build the error of a run whose loss or weights are no longer finite.

    Args:
        job: The run's job.
        what: "loss is", "weights are", or which gradients are.
        step: Step at which this was found, counted from 1.
        epoch: Epoch of this step, counted from 1.
        saved_steps: Steps of the run in its last checkpoint; 0 where there is none.
    """
    last = job.out / LAST
    kept = f"{last} is of update {saved_steps:,}" if saved_steps else "no checkpoint was saved"
    return RunError(
        f"the {what} no longer finite at update {step:,}, in epoch {epoch}; {kept}: start again in another "
        f"--out with a lower learning rate, such as --set lr={job.recipe.lr / 2:g}"
    )


@contextmanager
def short_of_memory(job: TrainJob, env: DistEnv) -> Iterator[None]:
    """Raise RunError, with what to lower, where a GPU runs out of memory within the block."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        local, steps = job.recipe.batch_size // env.world_size, job.recipe.accumulation_steps
        more = next((n for n in range(2 * steps, local + 1) if local % n == 0), None)
        halve = f"--set accumulation_steps={more}, or " if more else ""
        raise RunError(
            f"process {env.rank}: its GPU is out of memory with {local // steps:,} images at a time; use "
            f"fewer ({halve}a smaller --set batch_size), or a GPU that no other program uses"
        ) from error


def result(job: TrainJob, progress: Progress, reason: str) -> TrainResult:
    """Build the result of a run that ended for a `reason`.

    Args:
        job: The run's job.
        progress: The run's progress.
        reason: "finished", "--max-steps", "--patience", or the name of a signal.
    """
    if reason == "finished":
        return TrainResult(progress, "finished", f"finished {job.recipe.epochs} epochs: {job.out}")
    at = f"after update {progress.steps:,}, saved in {job.out / LAST}"
    if reason == "--max-steps":
        return TrainResult(progress, "finished", f"ended {at} (--max-steps)")
    if reason == "--patience":
        validations = f"{progress.unimproved} validation{'' if progress.unimproved == 1 else 's'}"
        without = f"{validations} without a top-1 above {progress.highest_top1:.2%}"
        return TrainResult(progress, "finished", f"ended {at}: {without} (--patience)")
    return TrainResult(progress, "stopped", f"stopped by {reason} {at}: continue with --resume")
