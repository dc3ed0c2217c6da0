"""One network or an ensemble measured on a split, every sample exactly once.

Shapes: B batch, V views (10 for ten crops), K classes, S crop.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import RunError
from pipeline.loader.loader import Loader
from pipeline.loader.views import EvalView, ViewName
from trainer.data import LoaderOptions
from trainer.distributed.env import DistEnv
from trainer.evaluation.metrics import Metrics, Tally
from trainer.evaluation.predictions import PredictionCollector, Predictions, refuse_other_keys
from trainer.models.classifier import Classifier
from trainer.runs import checkpoint
from trainer.runs.external_weights import ExternalWeights
from trainer.runs.load_model import load_models, normalized

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ClassMetrics:
    """Results of one class.

    Attributes:
        id, name: of the class.
        samples: its images.
        top1, top5: shares of them, 0..1, None where there are none.
        taken_for: id of the class that most of the wrong answers name, None where there are none.
        taken_for_share: share of the images, 0..1, that are taken for it.
    """

    id: str
    name: str
    samples: int
    top1: float | None
    top5: float | None
    confused_with: str | None
    confused_share: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_checkpoints` measured, and how.

    Attributes:
        checkpoints: files, in the order given.
        weights: of their probabilities, which sum to 1.
        split, views: what was measured, and how it was shown.
        classes: number of classes.
        metrics: over the split.
        per_class: in label order.
        notes: what a user should know of the checkpoints.
        confusion: int64 (K, K), images by label (row) and likeliest class (column).
        predictions: of every image in the order of keys, where asked for.
    """

    checkpoints: tuple[str, ...]
    weights: tuple[float, ...]
    split: str
    views: str
    classes: int
    metrics: Metrics
    per_class: tuple[ClassMetrics, ...]
    notes: tuple[str, ...]
    confusion: NDArray[np.int64]
    predictions: Predictions | None = None


def evaluate_checkpoints(
    env: DistEnv,
    paths: Sequence[Path],
    root: str | Path,
    split: str,
    views: ViewName,
    batch_size: int,
    weights: Sequence[float] | None = None,
    external: ExternalWeights | None = None,
    loader_options: LoaderOptions | None = None,
    predict: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure the averaged probabilities of checkpoints on a prepared dataset.

    All processes take part; the first one's result is whole, the others' lack `predictions`.

    Args:
        env: this process among all; each measures its share.
        paths: run directories or checkpoint files; several are an ensemble.
        root: the dataset's folder or address.
        split: usually "val".
        views: a name of `EvalView`.
        batch_size: images per step of a process.
        weights: of each checkpoint's probabilities, of any scale; equal where left out.
        external: what checkpoints that do not describe themselves leave unsaid.
        loader_options: how the data comes.
        predict: keep every image's likeliest classes.
        progress: is told after each batch of the images done and of all, by this process's share.

    Raises:
        UsageError: unreadable checkpoints, ones of other classes, crops or image sizes than the
            dataset's, weights that do not fit them, or `external` where nothing is.
        RunError: the samples seen are not the split's, each once.
    """
    dataset = Dataset.open(root)
    shares = normalized(weights, len(paths))
    files = [checkpoint.find(path) for path in paths]
    models, notes = load_models(files, dataset, external)
    models = [model.to(env.device) for model in models]
    view = EvalView(views, models[0].spec.crop)
    collector = PredictionCollector()
    how = loader_options or LoaderOptions()
    place = how.placement(env)
    with Loader(dataset, split, view, batch_size, placement=place, keys=True, access=how.access) as loader:
        tally = measure(models, loader, env, weights=shares, collector=collector, progress=progress)
    predictions = collector.gather(env)
    if predictions is not None:
        refuse_other_keys(predictions.keys, dataset, split)
    return Evaluation(
        tuple(map(str, files)),
        tuple(shares),
        split,
        views,
        len(dataset.classes),
        tally.metrics(),
        _per_class(tally, dataset.manifest.classes),
        tuple(notes),
        tally.confusion.cpu().numpy(),
        predictions if predict else None,
    )


def evaluate(
    models: Sequence[Classifier],
    loader: Loader,
    env: DistEnv,
    precision: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Metrics:
    """Measure the mean of the networks' probabilities, over views and networks, on a loader's split.

    All processes take part and get the same result.

    Raises:
        RunError: the samples seen are not as many as the split's; or the network gives no numbers.
    """
    return measure(models, loader, env, precision, progress=progress).metrics()


def measure(
    models: Sequence[Classifier],
    loader: Loader,
    env: DistEnv,
    precision: torch.dtype = torch.float32,
    weights: Sequence[float] | None = None,
    collector: PredictionCollector | None = None,
    progress: Progress | None = None,
) -> Tally:
    """As `evaluate`, but return the sums over all processes that every metric follows from.

    Args:
        models: one, or an ensemble.
        loader: of evaluation batches, with keys where `collector` is given.
        env: this process among all.
        precision: of the networks' arithmetic; probabilities are float64.
        weights: of the networks' probabilities, which sum to 1; equal where left out.
        collector: gets each image's likeliest classes.
        progress: see `evaluate_checkpoints`.

    Raises:
        RunError: as `evaluate`.
    """
    tally = Tally(len(loader.dataset.classes), env.device)
    shares = normalized(weights, len(models))
    done = 0
    with torch.inference_mode(), _evaluating(models):
        for batch in loader:
            images = batch.images.to(env.device, torch.float32)
            labels = batch.labels.to(env.device)
            probabilities = sum(
                share * _probabilities(model, images, loader.batch_size, precision)
                for share, model in zip(shares, models, strict=True)
            )
            assert isinstance(probabilities, Tensor)
            tally.add(probabilities, labels)
            if collector is not None:
                collector.add(batch.keys, batch.labels, probabilities)
            done += len(batch.labels)
            if progress is not None:
                progress(min(done * env.world_size, loader.samples), loader.samples)
    tally.merge()
    if tally.samples != loader.samples:
        raise RunError(
            f"evaluation saw {tally.samples} samples of {loader.samples} in {loader.split}; the shards do "
            "not hold what the manifest says: `alexnet-prep verify` on the dataset names what differs"
        )
    # NaN compares as neither likelier nor less likely: it would count as right
    if not math.isfinite(float(tally.loss)):
        raise RunError(
            f"the network's outputs on {loader.split} are not numbers: its weights diverged in training; "
            "train again with a lower learning rate"
        )
    return tally


def _per_class(tally: Tally, classes: Sequence[ClassInfo]) -> tuple[ClassMetrics, ...]:
    wrong = tally.confusion.cpu().numpy().copy()
    np.fill_diagonal(wrong, 0)
    found = []
    for info, row, *counts in zip(classes, wrong, *tally.per_class(), strict=True):
        images, top1, top5 = map(int, counts)
        other = int(row.argmax())
        found.append(
            ClassMetrics(
                info.id,
                info.name,
                images,
                top1 / images if images else None,
                top5 / images if images else None,
                classes[other].id if row[other] else None,
                int(row[other]) / max(images, 1),
            )
        )
    return tuple(found)


def _probabilities(model: Classifier, images: Tensor, batch_size: int, precision: torch.dtype) -> Tensor:
    """Softmax averaged over views: (B, 3, S, S) or (B, V, 3, S, S) → float64 (B, K)."""
    count = images.shape[0]
    if count < batch_size:  # filled up, so that a compiled network meets one shape only
        images = F.pad(images, (0, 0) * (images.ndim - 1) + (0, batch_size - count))
    views = images if images.ndim == 5 else images[:, None]
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        # One view at a time: memory stays that of a training step.
        for view in views.unbind(dim=1):
            total = total + model.classify(view).double().softmax(dim=1)
    return (total / views.shape[1])[:count]


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)
