"""A classifier made ready for training: its share of the batch, compiled, and one of several."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import UsageError
from trainer.distributed.env import DistEnv, Kind
from trainer.models.classifier import Classifier
from trainer.recipe import Recipe
from trainer.training.precision import Precision
from trainer.training.step import forward

BUCKET_MB = 4
"""Gradients that DDP exchanges at once, at least.

Of AlexNet's 244 MB the fully connected layers have 96 %, in three tensors that are ready first and go on
their way while the convolutions compute. With torch's 25 MB all convolutions would wait for conv1's
gradient and then cost an exchange of their own; with 4 MB only conv1's 0.1 MB is left to wait for.
"""

# What the response norm's backward pass sums over five channels takes a root and a division: on a CPU it is
# cheaper to compute it once, through memory, than five times (docs/benchmarks.md).
_CPU_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"realize_reads_threshold": 2}


def local_batch_size(recipe: Recipe, processes: int) -> int:
    """Return one process's part of the global batch.

    Raises:
        UsageError: it does not divide, or leaves too little for batch normalization.
    """
    if recipe.batch_size % processes:
        fewer = next(n for n in range(processes, 0, -1) if recipe.batch_size % n == 0)
        larger = math.ceil(recipe.batch_size / processes) * processes
        raise UsageError(
            f"batch_size {recipe.batch_size} does not divide among {processes} processes; use {fewer}, or "
            f"--set batch_size={larger}"
        )
    share = recipe.batch_size // processes
    if share % recipe.accumulation_steps:
        fits = next(n for n in range(min(recipe.accumulation_steps, share), 0, -1) if share % n == 0)
        raise UsageError(
            f"accumulation_steps {recipe.accumulation_steps} does not divide a process's {share} images; use "
            f"--set accumulation_steps={fits}"
        )
    if recipe.arch == "alexnet_bn" and share == recipe.accumulation_steps:
        raise UsageError(
            f"batch_size {recipe.batch_size} leaves one image for each of {processes} processes and "
            f"{recipe.accumulation_steps} parts, and batch normalization needs two; use --set "
            f"batch_size={2 * processes * recipe.accumulation_steps} or more"
        )
    return share


def compile_in_place(classifier: Classifier, kind: Kind, *, cuda_graphs: bool = False) -> None:
    """Let a classifier run compiled from its next call on: network and preprocessing as one graph.

    A bare `torch.nn.Sequential` would be compiled in pieces: torch skips the forward method of its own.
    """
    if kind == "gpu":
        classifier.compile(mode="reduce-overhead" if cuda_graphs else None)
    else:
        classifier.compile(options=_CPU_OPTIONS)


def wrap_ddp(classifier: Classifier, recipe: Recipe, env: DistEnv, *, cuda_graphs: bool = False) -> nn.Module:
    """The classifier as it is trained: compiled where the recipe says so, and one of several."""
    if recipe.compile:
        compile_in_place(classifier, env.kind, cuda_graphs=cuda_graphs)
    if env.world_size == 1:
        return classifier
    devices = [env.local_rank] if env.kind == "gpu" else None
    return DistributedDataParallel(
        classifier, device_ids=devices, bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=True
    )


def run_throwaway_step(
    model: nn.Module,
    classifier: Classifier,
    recipe: Recipe,
    batch_size: int,
    env: DistEnv,
    precision: Precision,
    note: Callable[[str], None],
) -> None:
    """Run one forward and backward pass that changes nothing.

    DDP regroups its gradients after the first backward pass, so that a resumed run would add in
    another order than an uninterrupted one; and a compiler that does not work shows itself here.
    """
    buffers = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    images = torch.zeros(
        batch_size // recipe.accumulation_steps, 3, recipe.crop, recipe.crop, device=env.device
    )
    if recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(images), dtype=torch.int64, device=env.device)

    def once() -> None:
        forward(model, images, labels, recipe, precision)[0].backward()  # type: ignore[no-untyped-call]

    try:
        once()
    except Exception as error:
        if not recipe.compile or not _is_compiler_error(error):
            raise
        classifier._compiled_call_impl = None  # how torch itself tells compiled from eager
        if env.is_first:
            reason = " ".join(str(error).split())[:160]  # the first line may say no more than "raised:"
            note(f"torch.compile does not work here, going on without it: {reason}")
        once()
    classifier.zero_grad(set_to_none=True)
    for name, buffer in classifier.named_buffers():
        buffer.copy_(buffers[name])


def _is_compiler_error(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
