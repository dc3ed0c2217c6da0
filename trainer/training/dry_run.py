"""What a run would be, without running it: steps, memory, and whether its data can be read."""

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

# Images that the activations are counted on; with more they grow in proportion.
_TRIED = (2, 4)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    Attributes:
        weights: parameters and buffers.
        state: gradients, velocities, averages, and what compression remembers.
        activations: kept for the backward pass.
        batches: of the loader, the one in use and those made ahead.
    """

    weights: int
    state: int
    activations: int
    batches: int

    @property
    def total(self) -> int:
        """All of it; libraries come on top."""
        return self.weights + self.state + self.activations + self.batches


@dataclass(frozen=True)
class Plan:
    """A run that was not begun.

    Attributes:
        recipe: as resolved, in TOML.
        precision: of its arithmetic on this machine.
        processes: all of them.
        batch_size: of each.
        parameters: of the network.
        steps_per_epoch, steps: updates.
        memory: of each process.
        samples: images of each split whose first batch was read.
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

    Raises:
        UsageError: data, recipe and processes that do not fit together, or shards of other sizes than the
            manifest's.
        RunError: a first batch cannot be read.
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
    """Estimate what a process holds, from what a forward pass in `precision` keeps of a few images."""
    weights = sum(p.nbytes for p in classifier.parameters())
    buffers = sum(b.nbytes for b in classifier.buffers())
    copies = 2 + bool(recipe.ema_decay)  # gradients, velocity
    copies += processes > 1 and recipe.grad_compression == "powersgd"
    image = 3 * recipe.crop**2 * 4
    part = batch_size // recipe.accumulation_steps
    few, more = (_kept(classifier, recipe, images, precision) for images in _TRIED)
    return Memory(
        weights=weights + buffers,
        state=copies * weights,
        activations=few + (more - few) * (part - _TRIED[0]) // (_TRIED[1] - _TRIED[0]),
        batches=4 * image * batch_size,  # in use, and DALI's queue of two with one under way
    )


def _kept(classifier: Classifier, recipe: Recipe, count: int, precision: torch.dtype) -> int:
    """Bytes that autograd keeps of a forward pass, each storage once, weights left out."""
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
