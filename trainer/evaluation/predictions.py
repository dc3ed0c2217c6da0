"""Top-5 predictions of each image: collecting them over processes, and CSV or Parquet files of them.

Shapes: B batch, K classes, N images, P = min(5, K) predictions kept per image.
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
from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import atomic_write
from trainer.distributed.env import DistEnv, gather_objects
from trainer.evaluation.probabilities import Top

SUFFIXES = (".csv", ".parquet")
"""Suffixes of files of predictions."""


@dataclass(frozen=True)
class Predictions:
    """The most probable classes of images, sorted by key.

    Attributes:
        keys: Keys of the N samples.
        labels: int64 (N,), class numbers, -1 where unknown.
        classes: int64 (N, P), class numbers, most probable first; ties go to the lower number.
        probabilities: float32 (N, P), 0..1, the probabilities of `classes`.
    """

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.keys)

    def of_labels(self, labels: Sequence[int]) -> "Predictions":
        """Return the predictions of images with these labels."""
        (kept,) = np.nonzero(np.isin(self.labels, labels))
        return Predictions(
            keys=tuple(self.keys[number] for number in kept),
            labels=self.labels[kept],
            classes=self.classes[kept],
            probabilities=self.probabilities[kept],
        )


def check_suffix(path: Path) -> None:
    """Check that a file name for predictions ends in .csv or .parquet.

    Raises:
        UsageError: the suffix is another.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: predictions are stored as CSV or Parquet; name a file that ends in .csv or .parquet"
        )


def write_predictions(path: Path, predictions: Predictions, classes: Sequence[ClassInfo]) -> None:
    """Write predictions as a table with one row per image, atomically.

    Columns: `key`; `label` (class number), `label_id` and `label_name`, empty where unknown; then for each
    k = 1 to P, most probable first, `class_k` (class number), `id_k`, `name_k` and `probability_k`.

    Args:
        path: File to write; ends in .csv or .parquet.
        predictions: Predictions to write.
        classes: Classes of the network, in label order.

    Raises:
        UsageError: the suffix is another.
        RunError: the file cannot be written.
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
    """Read a file that `write_predictions` wrote.

    Raises:
        UsageError: there is no such file, its suffix is another, or it holds no predictions.
    """
    check_suffix(path)
    import pyarrow as pa
    from pyarrow import csv, parquet

    if not path.is_file():
        raise UsageError(f"{path}: no such file of predictions")
    try:
        if path.suffix == ".csv":
            types = {"key": pa.string(), "label": pa.int64()}  # else a key of digits is read as a number
            table = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))
        else:
            table = parquet.read_table(path)
        kept = [name.removeprefix("class_") for name in table.column_names if name.startswith("class_")]
        classes = [table[f"class_{k}"].to_numpy() for k in kept]
        probabilities = [table[f"probability_{k}"].to_numpy() for k in kept]
        return Predictions(
            keys=tuple(table["key"].to_pylist()),
            labels=table["label"].fill_null(-1).to_numpy().astype(np.int64),
            classes=np.stack(classes, axis=1).astype(np.int64),
            probabilities=np.stack(probabilities, axis=1).astype(np.float32),
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
        predicted = predictions.classes[:, k]
        columns |= {
            f"class_{k + 1}": pa.array(predicted),
            f"id_{k + 1}": pa.array(ids[predicted], pa.string()),
            f"name_{k + 1}": pa.array(names[predicted], pa.string()),
            f"probability_{k + 1}": pa.array(predictions.probabilities[:, k]),
        }
    return pa.table(columns)


class PredictionCollector:
    """Collects the predictions of one process batch by batch, then gathers those of all processes."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, keys: Sequence[str], labels: Tensor, top: Top) -> None:
        """Add a batch; tensors stay on their device, and nothing here synchronizes with the GPU.

        Args:
            keys: Keys of the B samples.
            labels: int64 (B,), class numbers.
            top: The five most probable classes of each sample.
        """
        self._keys += keys
        self._batches.append((labels, top.classes, top.values.float()))

    def gather(self, env: DistEnv) -> Predictions | None:
        """Return the predictions of all processes, sorted by key, on rank 0; None on other ranks.

        Every process must call this.
        """
        mine = [torch.cat(column).cpu().numpy() for column in zip(*self._batches, strict=True)]
        gathered = [(keys, arrays) for keys, arrays in gather_objects((self._keys, mine), env) if keys]
        if not gathered:
            return None
        keys = [key for rank_keys, _ in gathered for key in rank_keys]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        columns = zip(*(arrays for _, arrays in gathered), strict=True)
        labels, classes, probabilities = (np.concatenate(column)[order] for column in columns)
        return Predictions(
            keys=tuple(keys[i] for i in order), labels=labels, classes=classes, probabilities=probabilities
        )


def refuse_other_keys(seen: Sequence[str], dataset: Dataset, split: str) -> None:
    """Check that every sample of a split was seen exactly once.

    A key is unique within a split, except in adopted datasets: tars of other tools may repeat it.

    Args:
        seen: Keys seen by all processes, sorted.
        dataset: The evaluated dataset.
        split: Name of the evaluated split.

    Raises:
        RunError: a sample was missed or seen twice, or a key is not in the split.
    """
    expected = sorted(dataset.samples(split).keys())
    twice = 0 if dataset.manifest.adopted else len(seen) - len({*seen})
    if list(seen) != expected or twice:
        missed = Counter(expected) - Counter(seen)
        raise RunError(
            f"evaluation of {split} missed {missed.total():,} of {len(expected):,} samples and saw {twice:,} "
            "keys again: the shards do not match the manifest; run `alexnet-prep verify "
            f"{dataset.url}` to list the differences"
        )
