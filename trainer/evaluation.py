"""Top-1 and top-5 of one net or an ensemble, every sample exactly once.

Shapes: B batch, V views (10 for ten crops), K classes, S crop.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.augment import EvalView, ViewName
from pipeline.dataset import Dataset
from pipeline.errors import RunError, UsageError
from pipeline.loader import Loader
from trainer import checkpoint
from trainer.classifier import Classifier
from trainer.distributed import World, all_sum


@dataclass(frozen=True)
class Metrics:
    """Results over a split.

    Attributes:
        samples: pictures measured.
        top1, top5: shares of pictures, 0..1, whose label is the likeliest, or among the five
            likeliest; of equal probabilities the lower class number counts as likelier.
        loss: mean −log of the label's probability, nats.
        largest_class: share of pictures, 0..1, of the commonest label: the top-1 of always guessing it.
    """

    samples: int
    top1: float
    top5: float
    loss: float
    largest_class: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_checkpoints` measured: how, and the metrics."""

    checkpoints: tuple[str, ...]
    split: str
    views: str
    classes: int
    metrics: Metrics


def evaluate_checkpoints(
    world: World, paths: Sequence[Path], root: Path, split: str, views: ViewName, batch_size: int
) -> Evaluation:
    """Measure the averaged probabilities of checkpoints on a prepared dataset.

    Args:
        world: this process among all; each measures its share.
        paths: run directories or checkpoint files; several are an ensemble.
        root: the dataset.
        split: usually "val".
        views: "centre" or "ten-crop".
        batch_size: pictures per step of a process.

    Raises:
        UsageError: unreadable checkpoints, or ones of other classes, crops or picture sizes than the
            dataset's.
    """
    dataset = Dataset.open(root)
    files = [checkpoint.find(path) for path in paths]
    nets = [checkpoint.classifier_of(checkpoint.load(file), file).to(world.device) for file in files]
    for net, file in zip(nets, files, strict=True):
        _refuse_other_data(net, file, dataset)
        if net.spec.crop != nets[0].spec.crop:
            raise UsageError(
                f"{file} takes {net.spec.crop} px crops, but {files[0]} takes {nets[0].spec.crop}: "
                "an ensemble shares its crops"
            )
    view = EvalView(views, nets[0].spec.crop)
    with Loader(dataset, split, view, batch_size, placement=world.placement) as loader:
        metrics = evaluate(nets, loader, world)
    return Evaluation(tuple(map(str, files)), split, views, len(dataset.classes), metrics)


def evaluate(
    nets: Sequence[Classifier], loader: Loader, world: World, precision: torch.dtype = torch.float32
) -> Metrics:
    """Measure the mean of the nets' probabilities, over views and nets, on a loader's split.

    All processes take part and get the same result.

    Raises:
        RunError: the samples seen are not the split's, each once; or the net gives no numbers.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)  # top-1, top-5, loss
    labelled = torch.zeros(len(loader.dataset.classes), dtype=torch.int64, device=world.device)
    with torch.inference_mode(), _evaluating(nets):
        for batch in loader:
            images = batch.images.to(world.device, torch.float32)
            _refuse_unknown_labels(batch.labels, len(labelled), loader)
            labels = batch.labels.to(world.device)
            probabilities = torch.stack(
                [_probabilities(net, images, loader.batch_size, precision) for net in nets]
            ).mean(dim=0)
            sums += _count(probabilities, labels)
            labelled += torch.bincount(labels, minlength=len(labelled))
    top1, top5, loss = all_sum(sums).tolist()
    samples = int(all_sum(labelled).sum())
    if samples != loader.samples:
        raise RunError(
            f"evaluation saw {samples} samples of {loader.samples} in {loader.split}; the shards do "
            "not hold what the manifest says: `alexnet-prep verify` on the dataset names what differs"
        )
    if not math.isfinite(loss):  # NaN compares as neither likelier nor less likely: it would count as right
        raise RunError(
            f"the net's outputs on {loader.split} are not numbers: its weights diverged in training; train "
            "again with a lower rate"
        )
    return Metrics(
        samples=samples,
        top1=top1 / samples,
        top5=top5 / samples,
        loss=loss / samples,
        largest_class=int(labelled.max()) / samples,
    )


def _refuse_unknown_labels(labels: Tensor, classes: int, loader: Loader) -> None:
    largest = int(labels.max())
    if largest >= classes:
        raise RunError(
            f"{loader.dataset.root}: {loader.split} holds the label {largest}, but the manifest names "
            f"{classes} classes; `alexnet-prep verify {loader.dataset.root}` names the shards"
        )


def label_ranks(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How many classes are likelier than the label, int64 (B,), from (B, K) and (B,).

    Of equal probabilities the lower class number counts as likelier, so that ties have one outcome.
    """
    own = probabilities.gather(1, labels[:, None])
    classes = torch.arange(probabilities.shape[1], device=labels.device)
    ahead = (probabilities > own) | ((probabilities == own) & (classes < labels[:, None]))
    return ahead.sum(dim=1)


def _probabilities(net: Classifier, images: Tensor, batch_size: int, precision: torch.dtype) -> Tensor:
    """Softmax averaged over views: (B, 3, S, S) or (B, V, 3, S, S) → float64 (B, K)."""
    count = images.shape[0]
    # A smaller last batch is filled up, so that a compiled net meets one shape only.
    images = F.pad(images, (0, 0) * (images.ndim - 1) + (0, batch_size - count))
    views = images if images.ndim == 5 else images[:, None]
    with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        # One view at a time: memory stays that of a training step.
        logits = [net.classify(view) for view in views.unbind(dim=1)]
    return torch.stack([x.double().softmax(dim=1) for x in logits]).mean(dim=0)[:count]


def _count(probabilities: Tensor, labels: Tensor) -> Tensor:
    ranks = label_ranks(probabilities, labels)
    own = probabilities.gather(1, labels[:, None]).double().clamp_min(1e-300)
    return torch.stack([(ranks < 1).sum().double(), (ranks < 5).sum().double(), -own.log().sum()])


@contextmanager
def _evaluating(nets: Sequence[nn.Module]) -> Iterator[None]:
    training = [net.training for net in nets]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for net, mode in zip(nets, training, strict=True):
            net.train(mode)


def _refuse_other_data(net: Classifier, file: Path, dataset: Dataset) -> None:
    spec = net.spec
    if list(spec.classes) != dataset.classes:
        ours, theirs = set(spec.classes), set(dataset.classes)
        missing, extra = sorted(ours - theirs), sorted(theirs - ours)
        detail = "; ".join(
            f"{what}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
            for what, names in (("only in the checkpoint", missing), ("only in the data", extra))
            if names
        )
        raise UsageError(
            f"{file}: trained on {len(spec.classes)} classes, {dataset.root} has {len(dataset.classes)} "
            f"({detail or 'in another order'}); evaluate on data with the same classes"
        )
    if spec.size != dataset.image.size:
        raise UsageError(
            f"{file}: trained on pictures with a shorter side of {spec.size} px, {dataset.root} has "
            f"{dataset.image.size} px; prepare the data with --size {spec.size}"
        )
