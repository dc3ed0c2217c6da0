"""Exponential moving average (EMA) of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer.models.classifier import Classifier


class Ema:
    """Exponential moving average of a classifier's weights and floating-point buffers.

    Each update computes a ← d·a + (1 − d)·w with d = min(decay, (1 + t) / (10 + t)) at update t, so that the
    weights of the first steps are soon forgotten (as in TensorFlow's ExponentialMovingAverage).

    Args:
        classifier: Classifier whose `model` is averaged; its preprocessing is not.
        decay: Decay d of the average, 0..1.
    """

    def __init__(self, classifier: Classifier, decay: float) -> None:
        # What changes in training: the model's weights and batch normalization's statistics.
        live = [*classifier.named_parameters(), *classifier.named_buffers()]
        self._live = {name: v for name, v in live if name.startswith("model.") and v.is_floating_point()}
        self._decay = decay
        self._updates = 0
        self._mean = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights; call it after each step."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(list(self._mean.values()), list(self._live.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the classifier the averaged weights within the `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by name ("mean") and the number of updates ("updates")."""
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
