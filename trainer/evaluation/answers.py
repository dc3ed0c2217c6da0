"""Answers of several processes brought together, and that they are of every sample exactly once."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.shards import keys_in
from pipeline.errors import RunError
from trainer.distributed.env import World, gather_objects
from trainer.evaluation.metrics import likeliest
from trainer.evaluation.predictions import KEPT, Predictions


class Answers:
    """A process's pictures and their likeliest classes, batch by batch."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._labels: list[Tensor] = []
        self._classes: list[Tensor] = []
        self._probabilities: list[Tensor] = []

    def add(self, keys: Sequence[str], labels: Tensor, probabilities: Tensor) -> None:
        """Note a batch of (B,) labels and (B, K) probabilities, where they are: nothing waits here."""
        self._keys += keys
        self._labels.append(labels)
        values, classes = likeliest(probabilities, KEPT)
        self._classes.append(classes)
        self._probabilities.append(values.float())

    def gather(self, world: World) -> Predictions | None:
        """All processes' pictures in the order of their keys, on the first; elsewhere None."""
        columns = (self._labels, self._classes, self._probabilities)
        arrays = [torch.cat(parts).cpu().numpy() for parts in columns if parts]
        everyone = [part for part in gather_objects((self._keys, arrays), world) if part[0]]
        if not everyone:
            return None
        keys = [key for part, _ in everyone for key in part]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        labels, classes, probabilities = (
            np.concatenate(column)[order] for column in zip(*(part for _, part in everyone), strict=True)
        )
        return Predictions(tuple(keys[i] for i in order), labels, classes, probabilities)


def split_keys(dataset: Dataset, split: str) -> list[str]:
    """The keys of a split's samples, as its indexes name them.

    Raises:
        UsageError: no such split, or a damaged index.
    """
    return [key for shard in dataset.shards(split) for key in keys_in(dataset.store, shard)]


def refuse_other_keys(seen: Sequence[str], dataset: Dataset, split: str) -> None:
    """Assert that every sample was seen exactly once.

    Tars of other tools may use a key in more than one tar; otherwise a key is one picture's.

    Args:
        seen: keys of all processes, sorted.
        dataset: that they are of.
        split: of it.

    Raises:
        RunError: they are not the split's, each once.
    """
    expected = sorted(split_keys(dataset, split))
    twice = 0 if dataset.manifest.adopted else len(seen) - len({*seen})
    if list(seen) != expected or twice:
        missed = Counter(expected) - Counter(seen)
        raise RunError(
            f"evaluation of {split} missed {missed.total():,} of {len(expected):,} samples and saw {twice:,} "
            "keys again; the shards do not hold what the manifest says: `alexnet-prep verify "
            f"{dataset.url}` names what differs"
        )
