"""Log messages of a run."""

from pipeline.dataset.dataset import Dataset
from pipeline.errors import RunError
from trainer.distributed.env import DistEnv
from trainer.models.classifier import Classifier
from trainer.precision import Precision
from trainer.runs.checkpoint import LAST
from trainer.runs.records import Progress
from trainer.training.options import TrainJob, TrainResult


def facts(
    job: TrainJob, dataset: Dataset, classifier: Classifier, env: DistEnv, precision: Precision
) -> dict[str, str]:
    """Describe a run for the head of its log: title → text."""
    recipe = job.recipe
    parameters = sum(p.numel() for p in classifier.model.parameters())
    return {
        "recipe": f"{recipe.name}: {recipe.arch}, {recipe.epochs} epochs, batch {recipe.batch_size}",
        "network": f"width {recipe.width:g}, {parameters:,} parameters, {precision}, validation in float32",
        "data": f"{dataset.url}: {dataset.samples('train'):,} training and {dataset.samples('val'):,} "
        f"validation images, {len(dataset.classes)} classes",
        "processes": f"{env.world_size} x {env.kind.upper()}",
        "run": str(job.out),
    }


def left_out(progress: Progress, images: int) -> str:
    """Return the log line on `images` of a begun epoch that are not trained on; "" where there are none."""
    if not images:
        return ""
    epoch = progress.epoch + 1
    begun = f"epoch {epoch} was begun with another number or kind of processes"
    return f"{begun}: its last {images:,} images are left out"


def diverged(job: TrainJob, what: str, step: int, epoch: int, saved_steps: int) -> RunError:
    """Build the error of a run whose loss or weights are no longer finite.

    Args:
        job: The run's job.
        what: "loss is" or "weights are".
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


def result(job: TrainJob, progress: Progress, reason: str) -> TrainResult:
    """Build the result of a run that ended for a `reason`: "finished", "--steps", or the name of a signal."""
    if reason == "finished":
        return TrainResult(progress, "finished", f"finished {job.recipe.epochs} epochs: {job.out}")
    at = f"after update {progress.steps:,}, saved in {job.out / LAST}"
    if reason == "--steps":
        return TrainResult(progress, "finished", f"ended {at} (--steps)")
    return TrainResult(progress, "stopped", f"stopped by {reason} {at}: continue with --resume")
