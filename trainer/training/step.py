"""One update of the weights.

Shapes: B batch of this process, S crop.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.recipe import Recipe
from trainer.training.precision import Precision


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    precision: Precision,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[Tensor, Tensor]:
    """Update the weights once, from (B, 3, S, S) images and (B,) labels.

    The batch is taken in `recipe.accumulation_steps` parts.

    Processes exchange their gradients once, with the last part.

    Returns:
        The mean loss and the number of correct guesses, both scalars of one dtype that stay on the
        device: nothing here waits for it, unless a float16 `scaler` must look for overflows.
    """
    optimizer.zero_grad(set_to_none=True)
    parts = recipe.accumulation_steps
    total = correct = torch.zeros((), device=images.device)
    for number, (x, y) in enumerate(zip(images.chunk(parts), labels.chunk(parts), strict=True), 1):
        alone = number < parts and isinstance(model, DistributedDataParallel)
        with model.no_sync() if alone else nullcontext():  # type: ignore[operator]
            loss, logits = forward(model, x, y, recipe, precision)
            loss = loss / parts
            (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
        correct = correct + (logits.detach().argmax(dim=1) == y).sum()
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return total, correct.to(total.dtype)


def forward(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, precision: Precision
) -> tuple[Tensor, Tensor]:
    """The mean loss and the logits (B, classes)."""
    with torch.autocast(precision.device, precision.dtype, enabled=precision.is_mixed):
        logits = model(images)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing), logits


def scaler_state(scaler: torch.amp.GradScaler | None) -> dict[str, Any]:
    """What a checkpoint holds of a scaler: numbers."""
    return {} if scaler is None else scaler.state_dict()
