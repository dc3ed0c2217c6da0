"""One training step: forward and backward pass, and the weights' update.

Shapes: B local batch size, S side of the crop, K classes.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.precision import Precision
from trainer.recipe import Recipe


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    precision: Precision,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[Tensor, Tensor, bool]:
    """Update the weights once.

    The batch is split into `recipe.accumulation_steps` chunks, whose gradients add up. Processes exchange
    gradients once, with the last chunk. Nothing here waits for the device, except that a float16 `scaler`
    is asked whether gradients overflowed. After an overflow, weights and buffers stay as they were, in all
    processes alike: the gradients that they exchange overflow together.

    Args:
        model: Module to train, as `wrap_ddp` returns it.
        optimizer: Optimizer of its parameters, with this step's learning rates.
        images: Batch, (B, 3, S, S), on the model's device.
        labels: Class numbers, int64 (B,), on the same device.
        recipe: Its `accumulation_steps` and `label_smoothing` are used.
        precision: Precision of the forward pass.
        scaler: Loss scaler for float16, else None.

    Returns:
        Mean loss and number of correct top-1 predictions, both scalars of the loss's dtype on the device; and
        whether gradients overflowed.
    """
    optimizer.zero_grad(set_to_none=True)
    buffers = [] if scaler is None else [buffer.clone() for buffer in model.buffers()]
    chunks = recipe.accumulation_steps
    total = correct = torch.zeros((), device=images.device)
    for number, (x, y) in enumerate(zip(images.chunk(chunks), labels.chunk(chunks), strict=True), 1):
        local = number < chunks and isinstance(model, DistributedDataParallel)
        with model.no_sync() if local else nullcontext():  # type: ignore[operator]
            loss, logits = forward(model, x, y, recipe, precision)
            loss = loss / chunks
            (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
        correct = correct + (logits.detach().argmax(dim=1) == y).sum()
    if scaler is None:
        optimizer.step()
        return total, correct.to(total.dtype), False
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    overflowed = scaler.get_scale() < scale
    if overflowed:  # batch normalization may have seen infinite activations
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return total, correct.to(total.dtype), overflowed


def forward(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy (a scalar) and the logits (B, K), float32 after mixed precision."""
    with torch.autocast(images.device.type, precision.dtype, enabled=precision.is_mixed):
        logits = model(images)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing), logits
