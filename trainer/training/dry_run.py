"""Dry run: check a training job, count its steps, and read its first batches."""

from dataclasses import dataclass, replace

from pipeline.dataset.dataset import Dataset
from trainer.data import TrainData, validation_loader
from trainer.distributed.env import DistEnv, Processes
from trainer.models.classifier import new_classifier
from trainer.precision import choose_precision
from trainer.training.checks import check_job
from trainer.training.options import TrainJob


@dataclass(frozen=True)
class Plan:
    """Result of a dry run.

    Attributes:
        recipe: The resolved recipe, in TOML.
        precision: Precision on this machine, such as "float32".
        processes: Number of processes.
        batch_size: Batch size of each process.
        parameters: Number of the network's parameters.
        steps_per_epoch, steps: Steps of an epoch and of the run.
        samples: Split that training uses → number of samples; the first batch of each was read.
    """

    recipe: str
    precision: str
    processes: int
    batch_size: int
    parameters: int
    steps_per_epoch: int
    steps: int
    samples: dict[str, int]


def plan(job: TrainJob, processes: Processes) -> Plan:
    """Resolve a job as `train` would, and read the first batches on the CPU; nothing is written.

    Args:
        job: The job to check.
        processes: Processes to plan for.

    Raises:
        UsageError: Data, recipe and processes do not fit together, or a shard's size differs from the
            manifest's.
        RunError: A first batch cannot be read.
    """
    recipe, dataset, env = job.recipe, Dataset.open(job.data), DistEnv()
    batch_size = check_job(job, dataset, processes.kind, processes.count)
    classifier = new_classifier(recipe, dataset)
    loader_options = replace(job.loader_options, backend="threads", decode_device="auto")
    with TrainData(recipe, dataset, classifier, batch_size, env, loader_options) as train_data:
        next(iter(train_data.epoch(0)))
    if job.validates(dataset):
        with validation_loader(recipe, dataset, env, loader_options) as val:
            next(iter(val))
    splits = ("train", "val") if job.validates(dataset) else ("train",)
    steps = len(dataset.samples("train")) // recipe.batch_size
    return Plan(
        recipe=recipe.to_toml(),
        precision=str(choose_precision(recipe, processes.kind)),
        processes=processes.count,
        batch_size=batch_size,
        parameters=sum(p.numel() for p in classifier.model.parameters()),
        steps_per_epoch=steps,
        steps=steps * recipe.epochs,
        samples={split: len(dataset.samples(split)) for split in splits},
    )
