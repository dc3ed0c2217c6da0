"""TensorBoard callback: scalars, the first layer's kernels, histograms of weights and of their updates."""

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UsageError
from trainer.callbacks.base import Callback
from trainer.runs.records import Ending, MetricsRow, StepMetrics, Weights
from trainer.runs.run_folder import TENSORBOARD

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Of the image of kernels: kernels in a row, and pixels on each side of a weight.
_COLUMNS = 12
_ENLARGED = 4


def require_tensorboard() -> None:
    """Refuse --tensorboard where TensorBoard is not installed.

    Raises:
        UsageError: It is not installed; the message says how to install it.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard needs TensorBoard, which is not installed: pip install "
            "'alexnet-toolkit[tensorboard]'"
        )


class TensorBoardCallback(Callback):
    """Writes events to RUN/tensorboard, with the number of steps as the x axis.

    A resumed run replaces the events of the steps that it repeats.
    """

    wants_weights = True

    def __init__(self, run: Path) -> None:
        self._folder = run / TENSORBOARD
        self._opened: SummaryWriter | None = None

    def on_step(self, row: StepMetrics) -> None:
        """Write loss, learning rate, images per second, data wait, memory, and what the loader does."""
        writer = self._writer(row.steps)
        loader = asdict(row.loader) if row.loader else {}
        seconds = {name: loader.get(name) for name in ("read", "decode", "augment", "wait")}
        for name, value in {
            "train/loss": row.loss,
            "train/lr": row.lr,
            "speed/images per second": row.images_per_second,
            "speed/data wait": row.data_wait,
            "speed/memory MB": row.memory_mb,
            "speed/rest of the GPU MB": row.gpu_rest_mb,
            "loader/batches ready": loader.get("ready"),
            **{f"loader/{name}, seconds per batch": value for name, value in seconds.items()},
        }.items():
            if value is not None:
                writer.add_scalar(name, value, row.steps)

    def on_validation(self, row: MetricsRow, epochs: int) -> None:
        """Write a validation's loss and accuracies."""
        self._write(row, validation=("val_loss", "val_top1", "val_top5"))

    def on_epoch(self, row: MetricsRow, epochs: int, best: bool) -> None:
        """Write an epoch's losses and accuracies, the validation's to the same scalars as those within it."""
        self._write(row, epoch=("train_loss", "train_top1"), validation=("val_loss", "val_top1", "val_top5"))

    def _write(self, row: MetricsRow, **groups: Sequence[str]) -> None:
        writer = self._writer(row.steps)
        for group, names in groups.items():
            for name in names:
                if (value := getattr(row, name)) is not None:
                    writer.add_scalar(f"{group}/{name.partition('_')[2]}", value, row.steps)
        writer.flush()

    def on_weights(self, weights: Weights) -> None:
        """Write kernels, histograms, and for each parameter the L2 norm of its last update over its own."""
        writer, steps = self._writer(weights.steps), weights.steps
        kernels = next(value for value in weights.weights.values() if value.ndim == 4)
        writer.add_image("kernels", tiled(kernels), steps)
        for name, value in weights.weights.items():
            update = weights.updates[name]
            writer.add_histogram(f"weights/{name}", value, steps)
            writer.add_histogram(f"updates/{name}", update, steps)
            ratio = float(update.norm() / value.norm().clamp_min(1e-30))
            writer.add_scalar(f"update to weight/{name}", ratio, steps)

    def on_end(self, how: Ending, line: str) -> None:
        """Close the event file."""
        if self._opened is not None:
            self._opened.close()

    def _writer(self, steps: int) -> "SummaryWriter":
        """Return the writer; the first event opens its file, and its step decides which old events go."""
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            self._opened = SummaryWriter(str(self._folder), purge_step=steps)
        return self._opened


def tiled(kernels: Tensor) -> Tensor:
    """Tile kernels into one image, 12 in a row, each weight 4x4 pixels, with white borders.

    Args:
        kernels: Weights, (N, 3, S, S).

    Returns:
        Float image (3, H, W), 0..1: zero is mid-gray, the largest absolute weight black or white.
    """
    scaled = 0.5 + 0.5 * kernels / kernels.abs().max().clamp_min(1e-30)
    cells = F.pad(
        scaled.repeat_interleave(_ENLARGED, 2).repeat_interleave(_ENLARGED, 3), (1, 1, 1, 1), value=1.0
    )
    rows = -(-len(cells) // _COLUMNS)
    empty = torch.ones(rows * _COLUMNS - len(cells), *cells.shape[1:])
    grid = torch.cat([cells, empty]).reshape(rows, _COLUMNS, *cells.shape[1:])
    return grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # from (rows, columns, 3, h, w)
