"""What a run says of itself in words."""

from pipeline.dataset.dataset import Dataset
from pipeline.errors import RunError
from trainer.distributed.env import DistEnv
from trainer.models.classifier import Classifier
from trainer.runs.checkpoint import LAST
from trainer.runs.records import Progress
from trainer.training.options import TrainJob, TrainResult
from trainer.training.precision import Precision, in_words


def facts(
    job: TrainJob, dataset: Dataset, classifier: Classifier, env: DistEnv, precision: Precision
) -> dict[str, str]:
    """The head of a run's log: title → text."""
    recipe = job.recipe
    parameters = sum(p.numel() for p in classifier.model.parameters())
    return {
        "recipe": f"{recipe.name}: {recipe.arch}, {recipe.epochs} epochs, batch {recipe.batch_size}",
        "network": f"width {recipe.width:g}, {parameters:,} parameters, {in_words(recipe, precision)}",
        "data": f"{dataset.url}: {dataset.samples('train'):,} training and {dataset.samples('val'):,} "
        f"validation images, {len(dataset.classes)} classes",
        "processes": f"{env.world_size} x {env.kind.upper()}",
        "run": str(job.out),
    }


def left_out(progress: Progress, images: int) -> str:
    """Why images of a begun epoch are not trained on, or ''."""
    if not images:
        return ""
    epoch = progress.epoch + 1
    return f"epoch {epoch} was begun by other processes: its last {images:,} images are left out"


def diverged(job: TrainJob, what: str, step: int, epoch: int, saved_steps: int) -> RunError:
    """The end of a run whose `what` ("loss is") left the numbers at an update, in an epoch from 1."""
    last = job.out / LAST
    kept = f"{last} is of update {saved_steps:,}" if saved_steps else "nothing was saved"
    return RunError(
        f"the {what} no longer finite at update {step:,}, in epoch {epoch}; {kept}: start again in another "
        f"--out with a lower learning rate, such as --set lr={job.recipe.lr / 2:g}"
    )


def finished(job: TrainJob, progress: Progress) -> TrainResult:
    """The end of a run that came to its end."""
    return TrainResult(progress, "finished", f"finished {job.recipe.epochs} epochs: {job.out}")


def stopped(job: TrainJob, progress: Progress, reason: str) -> TrainResult:
    """The end of a run that was asked to stop by `reason`: "--steps", or a signal's name."""
    at = f"after update {progress.steps:,}; {job.out / LAST} has it"
    if reason == "--steps":
        return TrainResult(progress, "finished", f"ended {at} (--steps)")
    return TrainResult(progress, "stopped", f"stopped by {reason} {at}: continue with --resume")
