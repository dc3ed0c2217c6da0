"""Dry run: count a training run's steps, estimate its memory, and check that its data can be read."""

from dataclasses import dataclass

import torch

from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from trainer.data import TrainData, validation_loader
from trainer.distributed.comm_hooks import check_compression
from trainer.distributed.env import DistEnv
from trainer.models.classifier import Classifier, new_classifier
from trainer.optim.optimizers import check_layers
from trainer.recipe import Recipe
from trainer.training.options import TrainJob
from trainer.training.precision import Precision, choose_precision, in_words
from trainer.training.setup import local_batch_size
from trainer.training.step import forward

# Batch sizes at which activation memory is measured; beyond, it grows linearly.
_TRIED = (2, 4)


@dataclass(frozen=True)
class Memory:
    """Estimated memory of one process, in bytes.

    Attributes:
        weights: Parameters and buffers.
        state: Gradients, momentum, averaged (EMA) weights, and PowerSGD's errors.
        activations: Tensors that a forward pass keeps for the backward pass.
        batches: Batches of the loader: the one in use and those prefetched.
    """

    weights: int
    state: int
    activations: int
    batches: int

    @property
    def total(self) -> int:
        """Sum of all, without what libraries such as CUDA use."""
        return self.weights + self.state + self.activations + self.batches


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
        memory: Estimated memory of each process.
        samples: Split → number of samples; the first batch of each split was read.
    """

    recipe: str
    precision: str
    processes: int
    batch_size: int
    parameters: int
    steps_per_epoch: int
    steps: int
    memory: Memory
    samples: dict[str, int]


def plan(job: TrainJob, processes: int) -> Plan:
    """Resolve a job as `train` would, on the CPU, and read the first batch of each split; nothing is written.

    Args:
        job: The job to check.
        processes: Number of processes to plan for.

    Raises:
        UsageError: Data, recipe and processes do not fit together, or a shard's size differs from the
            manifest's.
        RunError: A first batch cannot be read.
    """
    recipe, env = job.recipe, DistEnv()
    dataset = Dataset.open(job.data)
    batch_size = local_batch_size(recipe, processes)
    check_compression(recipe, env.kind if recipe.grad_compression != "bf16" else "gpu")
    classifier = new_classifier(recipe, dataset)
    check_layers(classifier.model, recipe)
    with TrainData(recipe, dataset, classifier, batch_size, env) as train_data:
        loader = train_data.epoch(0)
        next(iter(loader))
    with validation_loader(recipe, dataset, batch_size, env, job.loader_options) as val:
        next(iter(val))
    steps = dataset.samples("train") // recipe.batch_size
    if not steps:
        raise UsageError(
            f"{dataset.url}: train has {dataset.samples('train')} samples, fewer than one global batch of "
            f"{recipe.batch_size}; choose a smaller batch_size"
        )
    precision = choose_precision(recipe, env.kind)
    return Plan(
        recipe=recipe.to_toml(),
        precision=in_words(recipe, precision),
        processes=processes,
        batch_size=batch_size,
        parameters=sum(p.numel() for p in classifier.model.parameters()),
        steps_per_epoch=steps,
        steps=steps * recipe.epochs,
        memory=memory_of(classifier, recipe, batch_size, processes, precision.dtype),
        samples={split: dataset.samples(split) for split in ("train", "val")},
    )


def memory_of(
    classifier: Classifier, recipe: Recipe, batch_size: int, processes: int, precision: torch.dtype
) -> Memory:
    """Estimate a process's memory, its activations from forward passes of a few images in `precision`."""
    weights = sum(p.nbytes for p in classifier.parameters())
    buffers = sum(b.nbytes for b in classifier.buffers())
    copies = 2 + bool(recipe.ema_decay)  # gradients, momentum
    copies += processes > 1 and recipe.grad_compression == "powersgd"
    image = 3 * recipe.crop**2 * 4
    images_at_once = batch_size // recipe.accumulation_steps
    few, more = (_kept(classifier, recipe, images, precision) for images in _TRIED)
    return Memory(
        weights=weights + buffers,
        state=copies * weights,
        activations=few + (more - few) * (images_at_once - _TRIED[0]) // (_TRIED[1] - _TRIED[0]),
        batches=4 * image * batch_size,  # one in use, DALI's queue of two, one in the making
    )


def _kept(classifier: Classifier, recipe: Recipe, count: int, precision: torch.dtype) -> int:
    """Return the bytes that autograd keeps of a forward pass: each storage once, without the weights."""
    own = {p.untyped_storage().data_ptr() for p in classifier.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images, labels = (
        torch.zeros(count, 3, recipe.crop, recipe.crop),
        torch.zeros(count, dtype=torch.int64),
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = forward(classifier, images, labels, recipe, Precision(precision, "cpu"))
    del loss
    return sum(kept.values())
