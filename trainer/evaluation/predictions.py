"""What a network answered for each image, as CSV or Parquet.

Shapes: N images, P answers kept (5, or the number of classes where there are fewer).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.index import keys_in
from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import atomic_write
from trainer.distributed.env import DistEnv, gather_objects
from trainer.evaluation.metrics import topk_stable

KEPT = 5
"""Answers kept of each image: the paper's and the challenge's top-5."""
SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class Predictions:
    """The likeliest classes of images, in the order of their keys.

    Attributes:
        keys: the samples' keys.
        labels: int64 (N,), -1 where unknown.
        classes: int64 (N, P), class numbers, likeliest first; of equal probabilities the lower first.
        probabilities: float32 (N, P), theirs.
    """

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.keys)


def check_suffix(path: Path) -> None:
    """Refuse a file of predictions that is neither CSV nor Parquet by its name.

    Raises:
        UsageError: names the suffixes.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: predictions are written as CSV or Parquet; end its name in .csv or .parquet"
        )


def write_predictions(path: Path, predictions: Predictions, classes: Sequence[ClassInfo]) -> None:
    """Write a row for each image, atomically.

    Columns: `key`; `label` (class number), `label_id` and `label_name`, empty where unknown; then for
    k = 1 to P `class_k` (number), `id_k`, `name_k` and `probability_k`, likeliest first.

    Args:
        path: ends in .csv or .parquet.
        predictions: what to write.
        classes: of the network, in label order.

    Raises:
        UsageError: another suffix.
        RunError: it cannot be written.
    """
    check_suffix(path)
    from pyarrow import csv, parquet

    table = _to_table(predictions, classes)
    with atomic_write(path) as file:
        if path.suffix == ".csv":
            csv.write_csv(table, file, csv.WriteOptions(quoting_style="needed"))
        else:
            parquet.write_table(table, file)


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises:
        UsageError: no such file, or not one of predictions.
    """
    check_suffix(path)
    import pyarrow as pa
    from pyarrow import csv, parquet

    if not path.is_file():
        raise UsageError(f"{path}: no such file of predictions")
    try:
        if path.suffix == ".csv":
            texts = {"key": pa.string(), "label": pa.int64()}  # a key of digits is a text all the same
            table = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=texts))
        else:
            table = parquet.read_table(path)
        kept = [name.removeprefix("class_") for name in table.column_names if name.startswith("class_")]
        classes = [table[f"class_{k}"].to_numpy() for k in kept]
        probabilities = [table[f"probability_{k}"].to_numpy() for k in kept]
        return Predictions(
            tuple(table["key"].to_pylist()),
            table["label"].fill_null(-1).to_numpy().astype(np.int64),
            np.stack(classes, axis=1).astype(np.int64),
            np.stack(probabilities, axis=1).astype(np.float32),
        )
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"{path}: not predictions of `alexnet-eval --predictions` ({reason}); write them again"
        ) from error


def _to_table(predictions: Predictions, classes: Sequence[ClassInfo]) -> Any:
    import pyarrow as pa

    ids = np.array([info.id for info in classes], object)
    names = np.array([info.name for info in classes], object)
    known = predictions.labels >= 0
    labels = np.where(known, predictions.labels, 0)
    columns = {
        "key": pa.array(predictions.keys, pa.string()),
        "label": pa.array(labels, mask=~known),
        "label_id": pa.array(ids[labels], pa.string(), mask=~known),
        "label_name": pa.array(names[labels], pa.string(), mask=~known),
    }
    for k in range(predictions.classes.shape[1]):
        guesses = predictions.classes[:, k]
        columns |= {
            f"class_{k + 1}": pa.array(guesses),
            f"id_{k + 1}": pa.array(ids[guesses], pa.string()),
            f"name_{k + 1}": pa.array(names[guesses], pa.string()),
            f"probability_{k + 1}": pa.array(predictions.probabilities[:, k]),
        }
    return pa.table(columns)


class PredictionCollector:
    """A process's images and their likeliest classes, batch by batch."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._labels: list[Tensor] = []
        self._classes: list[Tensor] = []
        self._probabilities: list[Tensor] = []

    def add(self, keys: Sequence[str], labels: Tensor, probabilities: Tensor) -> None:
        """Note a batch of (B,) labels and (B, K) probabilities, where they are: nothing waits here."""
        self._keys += keys
        self._labels.append(labels)
        values, classes = topk_stable(probabilities, KEPT)
        self._classes.append(classes)
        self._probabilities.append(values.float())

    def gather(self, env: DistEnv) -> Predictions | None:
        """All processes' images in the order of their keys, on the first; elsewhere None."""
        columns = (self._labels, self._classes, self._probabilities)
        arrays = [torch.cat(parts).cpu().numpy() for parts in columns if parts]
        everyone = [part for part in gather_objects((self._keys, arrays), env) if part[0]]
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

    Tars of other tools may use a key in more than one tar; otherwise a key is one image's.

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
