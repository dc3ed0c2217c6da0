"""An exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainer.models.classifier import Classifier


class Ema:
    """A classifier's weights and floating-point buffers, averaged over its updates.

    a ← d·a + (1 − d)·w, with d = min(decay, (1 + t) / (10 + t)) after t updates, so that the first ones,
    of a network that has learnt little, are soon forgotten (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, classifier: Classifier, decay: float) -> None:
        self._live = _averaged(classifier)
        self._decay = decay
        self._updates = 0
        self._mean = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        live = [self._live[name].detach() for name in self._mean]
        torch._foreach_lerp_(list(self._mean.values()), live, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the classifier has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """The averages and their count."""
        return {"updates": self._updates, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._updates = int(state["updates"])
        for name, value in self._mean.items():
            value.copy_(state["mean"][name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, mean in self._mean.items():
            kept = mean.clone()
            mean.copy_(self._live[name])
            self._live[name].copy_(kept)


def _averaged(classifier: Classifier) -> dict[str, Tensor]:
    """What changes in training: weights, and batch normalization's statistics."""
    buffers = {name: b for name, b in classifier.named_buffers() if b.is_floating_point()}
    both = dict(classifier.named_parameters()) | buffers
    return {name: value for name, value in both.items() if name.startswith("model.")}
