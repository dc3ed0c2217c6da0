"""Probabilities of a network or an ensemble, averaged over views, and the most probable classes.

Shapes: B batch, V views (1, or 10 for ten crops), K classes, S side of the crop.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.models.classifier import Classifier
from trainer.precision import PrecisionName, computing
from trainer.runs.load_model import normalized

KEPT = 5
"""Predictions kept per image: the top-5 of the paper and of the challenge."""


@torch.inference_mode()
def mean_probabilities(
    models: Sequence[Classifier],
    images: Tensor,
    weights: Sequence[float] | None = None,
    precision: PrecisionName = "float32",
) -> Tensor:
    """Average the softmax, not the logits, over views and networks.

    Args:
        models: One network or an ensemble, in evaluation mode.
        images: float32 (B, V, 3, S, S) or (B, 3, S, S), RGB, 0..255, on the networks' device.
        weights: Weight of each network's probabilities, on any scale; default: equal.
        precision: Precision of the forward pass; softmax and averages are float64.

    Returns:
        float64 (B, K); each row sums to 1.

    Raises:
        UsageError: `weights` do not fit the networks, or the device lacks the precision.
        RunError: the GPU is out of memory.
    """
    views = images if images.ndim == 5 else images[:, None]
    mean = torch.zeros((), dtype=torch.float64, device=images.device)
    for share, model in zip(normalized(weights, len(models)), models, strict=True):
        total = torch.zeros_like(mean)
        with computing(precision, images.device):
            # One view at a time: memory stays at that of one batch, not V.
            for view in views.unbind(dim=1):
                total = total + model.classify(view).double().softmax(dim=1)
        mean = mean + share * (total / views.shape[1])
    return mean


class Top(NamedTuple):
    """The k most probable classes of each row, most probable first.

    Attributes:
        values: Their probabilities, (B, k).
        classes: Their class numbers, int64 (B, k).
    """

    values: Tensor
    classes: Tensor


def topk_stable(probabilities: Tensor, count: int) -> Top:
    """Return the k = min(count, K) most probable classes of each row; ties go to the lower class number.

    `torch.topk` leaves the order of ties open, and a stable sort of 1,000 classes takes ten times as long.

    Args:
        probabilities: float (B, K).
        count: Number of classes to return.
    """
    left = probabilities.clone()
    found = []
    for _ in range(min(count, left.shape[1])):
        found.append(left.max(dim=1, keepdim=True))  # torch documents that ties give the first index
        left.scatter_(1, found[-1].indices, -math.inf)
    return Top(torch.cat([f.values for f in found], dim=1), torch.cat([f.indices for f in found], dim=1))
