"""Evaluate a network, or an ensemble, on a split of a dataset; every sample counts exactly once.

Shapes: B batch, V views (1, or 10 for ten crops), K classes, S side of the crop.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from pipeline.arguments import COUNT, checked
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import RunError, UsageError
from pipeline.loader.loader import Loader
from pipeline.loader.views import EvalView, ViewName
from pipeline.progress import OnProgress, no_progress
from trainer.data import LoaderOptions, first_fetch, open_loader_of
from trainer.distributed.env import DistEnv
from trainer.evaluation.metrics import Metrics, Tally
from trainer.evaluation.predictions import PredictionCollector, Predictions, refuse_other_keys
from trainer.evaluation.probabilities import KEPT, mean_probabilities, topk_stable
from trainer.models.classifier import Classifier
from trainer.precision import PrecisionName, check_precision
from trainer.runs import checkpoint
from trainer.runs.class_match import ClassesBy, ClassMatch
from trainer.runs.external_weights import ExternalWeights
from trainer.runs.load_model import load_models, normalized
from trainer.runs.state_dict import WeightsChoice


@dataclass(frozen=True)
class ClassMetrics:
    """Accuracy of one class.

    Attributes:
        id: Class id, such as a WNID.
        name: Readable name of the class.
        samples: Number of images with this label.
        top1, top5: Accuracy over these images, 0..1; None where there are no images.
        confused_with: Id of the most frequent wrong prediction; None where every prediction is right.
        confused_share: Share of the images, 0..1, that are predicted as `confused_with`; None where there
            are no images.
    """

    id: str
    name: str
    samples: int
    top1: float | None
    top5: float | None
    confused_with: str | None
    confused_share: float | None


@dataclass(frozen=True)
class SharedClasses:
    """The classes that networks and a dataset share, over which they are evaluated.

    The logits of the networks' other classes are left out before the softmax.

    Attributes:
        labels: Their class numbers in the dataset, in order.
        data: Number of the dataset's classes.
        networks: Number of each network's classes.
        by: What matched the classes of each network: "order", "id" or "name".
        images_left_out: Number of images of the split that do not count, as a network lacks their class.
    """

    labels: tuple[int, ...]
    data: int
    networks: tuple[int, ...]
    by: tuple[str, ...]
    images_left_out: int

    @property
    def all_shared(self) -> bool:
        """Whether networks and dataset have the same classes."""
        return {self.data, *self.networks} == {len(self.labels)}


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate_checkpoints`.

    Attributes:
        checkpoints: Checkpoint files, in the order given.
        ensemble_weights: Weight of each checkpoint's probabilities; they sum to 1.
        split: Name of the evaluated split.
        views: Name of the `EvalView` that the images were cut by.
        precision: Precision in which the networks were computed.
        classes: Number of classes that networks and dataset share, K.
        shared: Which these are.
        metrics: Metrics over the split's images of these classes.
        per_class: Accuracy of each of these classes, in label order.
        notes: Remarks on the checkpoints for the user, one line each.
        confusion: int64 (K, K), number of images by label (row) and predicted class (column).
        predictions: Top-5 predictions of every image that counts, sorted by key, with the dataset's class
            numbers; None unless requested.
    """

    checkpoints: tuple[str, ...]
    ensemble_weights: tuple[float, ...]
    split: str
    views: str
    precision: PrecisionName
    classes: int
    shared: SharedClasses
    metrics: Metrics
    per_class: tuple[ClassMetrics, ...]
    notes: tuple[str, ...]
    confusion: NDArray[np.int64]
    predictions: Predictions | None = None


@checked(batch_size=COUNT)
def evaluate_checkpoints(
    env: DistEnv,
    paths: Sequence[Path],
    root: str | Path,
    split: str | None,
    views: ViewName,
    batch_size: int,
    ensemble_weights: Sequence[float] | None = None,
    external: ExternalWeights | None = None,
    weights: WeightsChoice | None = None,
    loader_options: LoaderOptions | None = None,
    precision: PrecisionName = "float32",
    predict: bool = False,
    classes_by: ClassesBy = "name",
    every_image: bool = False,
    on_progress: OnProgress = no_progress,
    on_log: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate checkpoints on a prepared dataset; several are an ensemble that averages probabilities.

    Networks are evaluated over the classes that all of them share with the dataset. Every process must call
    this; each evaluates its share. Only rank 0 gets `predictions`.

    Args:
        env: Rank, world size and device of this process.
        paths: Run folders or checkpoint files.
        root: Path or URL of the dataset.
        split: Name of the split; None for "val", or for the only one.
        views: Name of an `EvalView`.
        batch_size: Images per batch; the processes take whole batches in turns.
        ensemble_weights: Weight of each checkpoint's probabilities, 0 or more, on any scale; default: equal.
        external: Architecture and preprocessing of checkpoints that other programs wrote.
        weights: Which weights to take of checkpoints that hold averaged (EMA) ones beside the model's own;
            None for the averaged ones where there are any.
        loader_options: Device, threads and shard access of the loader.
        precision: Precision of the networks, whatever they were trained in.
        predict: Whether to return the top-5 predictions of every image.
        classes_by: How the classes of networks and dataset are matched: by "name" (by id, such as a WNID, or
            else by name), or by "order".
        every_image: Whether to refuse networks that lack a class of the dataset, instead of leaving its
            images out.
        on_progress: Called after each batch with (images done, images in all); images done are estimated
            from this process's share.
        on_log: Called on rank 0, with a line on the shards that the first batch waits for, if it does.

    Raises:
        UsageError: a checkpoint cannot be read or does not have these `weights`; its crop or image size
            differ from the dataset's or the other checkpoints', or it shares no classes with them;
            `ensemble_weights` do not fit the
            checkpoints; `external` is given although no checkpoint needs it; or the device lacks the
            precision.
        RunError: a sample of the split was missed or seen twice, or the outputs are not finite.
    """
    check_precision(precision, env.kind)
    dataset = Dataset.open(root)
    split = dataset.evaluation_split(split)
    shares = normalized(ensemble_weights, len(paths))
    files = [checkpoint.find(path) for path in paths]
    models, matches, notes = load_models(files, dataset, external, weights, classes_by)
    labels = _shared_labels(matches, dataset, every_image)
    counted = None if len(labels) == len(dataset.classes) else labels
    models = [model.to(env.device) for model in models]
    view = EvalView(views, models[0].spec.crop)
    collector = PredictionCollector()
    options = loader_options or LoaderOptions()
    with open_loader_of(env, options, dataset, split, view, batch_size) as loader:
        if on_log and env.is_first and (line := first_fetch(loader)):
            on_log(line)
        tally = measure(models, loader, env, precision, shares, collector, on_progress, counted)
    predictions = collector.gather(env)
    if predictions is not None:
        refuse_other_keys(predictions.keys, dataset, split)
        predictions = predictions.of_labels(labels) if counted else predictions
    rows = np.array(labels)
    confusion = tally.confusion.cpu().numpy()[np.ix_(rows, rows)]
    return Evaluation(
        checkpoints=tuple(map(str, files)),
        ensemble_weights=tuple(shares),
        split=split,
        views=views,
        precision=precision,
        classes=len(labels),
        shared=SharedClasses(
            labels=labels,
            data=len(dataset.classes),
            networks=tuple(match.network for match in matches),
            by=tuple(match.by for match in matches),
            images_left_out=int(tally.left_out),
        ),
        metrics=tally.metrics(),
        per_class=_per_class(tally, labels, dataset.manifest.classes),
        notes=tuple(notes),
        confusion=confusion,
        predictions=predictions if predict else None,
    )


@checked()
def evaluate(
    models: Sequence[Classifier],
    loader: Loader,
    env: DistEnv,
    precision: PrecisionName = "float32",
    on_progress: OnProgress = no_progress,
) -> Metrics:
    """Evaluate a network or an ensemble on the split of a loader.

    Probabilities are averaged over views and networks. Every process must call this, and gets the same
    result.

    Args:
        models: One network or an ensemble, on `env.device`.
        loader: Loader of evaluation batches.
        env: Rank, world size and device of this process.
        precision: Precision of the forward pass; probabilities are float64.
        on_progress: Called after each batch with (images done, images in all).

    Raises:
        RunError: the number of samples seen differs from the split's, or the outputs are not finite.
    """
    return measure(models, loader, env, precision, on_progress=on_progress).metrics()


def measure(
    models: Sequence[Classifier],
    loader: Loader,
    env: DistEnv,
    precision: PrecisionName = "float32",
    weights: Sequence[float] | None = None,
    collector: PredictionCollector | None = None,
    on_progress: OnProgress = no_progress,
    counted: Sequence[int] | None = None,
) -> Tally:
    """Evaluate as `evaluate` does, and return the sums over all processes instead of the metrics.

    Args:
        models: One network or an ensemble, on `env.device`.
        loader: Loader of evaluation batches, which the processes take in turns.
        env: Rank, world size and device of this process.
        precision: Precision of the forward pass; probabilities are float64.
        weights: Weight of each network's probabilities, on any scale; default: equal.
        collector: Collects the top-5 predictions of this process's images.
        on_progress: Called after each batch with (images done, images in all).
        counted: Labels of the images that count; only these classes are predicted. None for all.

    Raises:
        UsageError: `weights` do not fit the networks, or no image counts.
        RunError: the number of samples seen differs from the split's, or the outputs are not finite.
    """
    classes = len(loader.dataset.classes)
    tally = Tally(classes, env.device, counted)
    other = torch.tensor(
        sorted({*range(classes)}.difference(counted or range(classes))), device=env.device
    ).long()
    done = 0
    with torch.inference_mode(), _evaluating(models):
        for batch in loader:
            images, count = batch.images.to(env.device, torch.float32), len(batch.labels)
            # Pad the last batch, so that torch.compile sees one shape only.
            images = F.pad(images, (0, 0) * (images.ndim - 1) + (0, loader.global_batch - count))
            probabilities = mean_probabilities(models, images, weights, precision)[:count]
            # Below 0: a class that is left out is predicted in no tie.
            top = topk_stable(probabilities.index_fill(1, other, -1), min(KEPT, classes - len(other)))
            tally.add(probabilities, batch.labels.to(env.device), top)
            if collector is not None:
                collector.add(batch.keys, batch.labels, top)
            done += count
            on_progress(min(done * env.world_size, loader.samples), loader.samples)
    tally.merge()
    seen = tally.samples + int(tally.left_out)
    if seen != loader.samples:
        raise RunError(
            f"evaluation saw {seen} samples of {loader.samples} in {loader.split}: the shards do "
            "not match the manifest; run `alexnet-prep verify` on the dataset to list the differences"
        )
    if not tally.samples:
        raise UsageError(
            f"{loader.dataset.url}: {loader.split} has no image of a class that the networks have; choose "
            "another split with --split"
        )
    # Rows of NaN have most probable classes too, and may count as right.
    if tally.invalid:
        raise RunError(
            f"the network's outputs on {loader.split} are not finite: its weights diverged in training; "
            "train again with a lower learning rate"
        )
    return tally


def _shared_labels(matches: Sequence[ClassMatch], dataset: Dataset, every_image: bool) -> tuple[int, ...]:
    """Return the dataset's class numbers of the classes that all networks have."""
    labels = tuple(label for label, output in enumerate(matches[0].outputs) if output is not None)
    lacking = [info.id for label, info in enumerate(dataset.manifest.classes) if label not in set(labels)]
    if len(labels) < 2:
        raise UsageError(f"{dataset.url}: the networks of the ensemble share fewer than two of its classes")
    if every_image and lacking:
        raise UsageError(
            f"{dataset.url}: a prediction is needed for every image, but the networks lack "
            f"{len(lacking):,} of its {len(dataset.classes):,} classes, such as {lacking[0]}; evaluate "
            "networks that have them all"
        )
    return labels


def _per_class(tally: Tally, labels: Sequence[int], classes: Sequence[ClassInfo]) -> tuple[ClassMetrics, ...]:
    wrong = tally.confusion.cpu().numpy().copy()
    np.fill_diagonal(wrong, 0)
    per_class = tally.per_class()
    found = []
    for label in labels:
        info, row, counts = classes[label], wrong[label], (column[label] for column in per_class)
        images, top1, top5 = map(int, counts)
        other = int(row.argmax())
        found.append(
            ClassMetrics(
                id=info.id,
                name=info.name,
                samples=images,
                top1=top1 / images if images else None,
                top5=top5 / images if images else None,
                confused_with=classes[other].id if row[other] else None,
                confused_share=int(row[other]) / images if images else None,
            )
        )
    return tuple(found)


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules into evaluation mode within the block, and restore their mode afterwards."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)
