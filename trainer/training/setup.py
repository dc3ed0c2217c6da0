"""Prepare a classifier for training: initial weights, torch.compile, DDP."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.dataset.dataset import Dataset
from pipeline.seeds import derive_seed
from trainer.distributed.env import DistEnv, Kind, all_most, gather_objects
from trainer.models.classifier import Classifier, new_classifier
from trainer.precision import Precision
from trainer.recipe import Recipe
from trainer.training.compiler_errors import describe_compiler_error
from trainer.training.step import forward

BUCKET_MB = 4
"""Least size of a bucket of gradients, which DDP exchanges at once, MB.

The fully connected layers have 96 % of AlexNet's 244 MB, in three tensors whose gradients are ready first
and are exchanged while the convolutions compute theirs. With torch's default of 25 MB all convolutions would
be in one bucket, which waits for conv1's gradient and is then exchanged last; with 4 MB only conv1's 0.1 MB
is left for the end.
"""

# The backward pass of local response normalization sums terms with a root and a division over five channels.
# On a CPU it is faster to store each term than to compute it five times (docs/benchmarks.md).
_CPU_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"realize_reads_threshold": 2}


def build_classifier(recipe: Recipe, dataset: Dataset, env: DistEnv) -> Classifier:
    """Build a recipe's classifier on this process's device, with weights drawn from the recipe's seed.

    Raises:
        UsageError: See `new_classifier`.
    """
    torch.manual_seed(derive_seed(recipe.seed, "init"))
    classifier = new_classifier(recipe, dataset).to(env.device)
    if recipe.precision == "float64":
        classifier.to_float64()
    if recipe.channels_last:
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return classifier


def compile_in_place(classifier: Classifier, kind: Kind, *, cuda_graphs: bool = False) -> None:
    """Compile a classifier in place, network and preprocessing as one graph, at its next call.

    A bare `torch.nn.Sequential` would be compiled in pieces, because torch skips the forward methods of its
    own modules.

    Args:
        classifier: The classifier to compile.
        kind: "gpu" or "cpu".
        cuda_graphs: Record CUDA graphs (mode "reduce-overhead"); ignored on the CPU.
    """
    if kind == "gpu":
        classifier.compile(mode="reduce-overhead" if cuda_graphs else None)
    else:
        classifier.compile(options=_CPU_OPTIONS)


def wrap_ddp(classifier: Classifier, recipe: Recipe, env: DistEnv, *, cuda_graphs: bool = False) -> nn.Module:
    """Return the module to train: compiled where the recipe says so, wrapped in DDP for several processes."""
    if recipe.compile:
        compile_in_place(classifier, env.kind, cuda_graphs=cuda_graphs)
    if env.world_size == 1:
        return classifier
    devices = [env.gpu] if env.kind == "gpu" else None
    return DistributedDataParallel(
        classifier,
        device_ids=devices,
        bucket_cap_mb=BUCKET_MB,
        gradient_as_bucket_view=True,
        # Buffers, which no training step reads, are shared before validation and saving instead.
        broadcast_buffers=False,
    )


def run_throwaway_step(
    model: nn.Module,
    classifier: Classifier,
    recipe: Recipe,
    batch_size: int,
    env: DistEnv,
    precision: Precision,
    log: Callable[[str], None],
) -> None:
    """Run one forward and backward pass on zeros that leaves weights and buffers unchanged.

    DDP rebuilds its buckets after the first backward pass, so without this step a resumed run would sum
    gradients in another order than an uninterrupted one. It also shows whether torch.compile works here;
    where it fails in one process, all train without it, and rank 0 calls `log` with a line that says why.
    """
    buffers = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    shape = batch_size // recipe.accumulation_steps, 3, recipe.crop, recipe.crop
    images = torch.zeros(shape, dtype=classifier.dtype, device=env.device)
    if recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(images), dtype=torch.int64, device=env.device)

    def once() -> None:
        forward(model, images, labels, recipe, precision)[0].backward()  # type: ignore[no-untyped-call]

    if recipe.compile:
        # Without an exchange of gradients, in which the others would wait for a process that fails here.
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            failures = [text for text in gather_objects(_compiler_error_of(once), env) if text]
        if all_most(len(failures), env):
            classifier._compiled_call_impl = None  # torch calls a module eagerly where this is None
            if env.is_first:
                log(
                    f"torch.compile does not work here: {failures[0]}. Training goes on without it, which "
                    "may halve the speed"
                )
    once()
    classifier.zero_grad(set_to_none=True)
    for name, buffer in classifier.named_buffers():
        buffer.copy_(buffers[name])


def _compiler_error_of(step: Callable[[], None]) -> str:
    """Run a step of a compiled model; describe the compiler's error in one line, "" where there is none."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        # On GPUs that could round to TensorFloat-32, the compiler recommends it. It is the recipe's choice.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores .* available but not enabled")
            step()
    except TorchDynamoException as error:
        return describe_compiler_error(error)
    return ""
