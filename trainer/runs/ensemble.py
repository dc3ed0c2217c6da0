"""The nets of an evaluation: loaded, checked against the data and each other, and weighted."""

import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from trainer.models.classifier import Classifier
from trainer.runs import checkpoint
from trainer.runs.external_weights import Foreign, is_foreign, load_foreign


def load_nets(
    files: Sequence[Path], dataset: Dataset, foreign: Foreign | None = None
) -> tuple[list[Classifier], list[str]]:
    """Load the checkpoints of an ensemble and check that they fit the data and each other.

    Args:
        files: checkpoints, of this toolkit or of other programs.
        dataset: what they will be shown.
        foreign: what those of other programs leave unsaid.

    Returns:
        The classifiers, on the CPU, and what a user should know of them.

    Raises:
        UsageError: unreadable checkpoints, ones of other classes, crops or picture sizes than the
            dataset's, or `foreign` where every checkpoint describes itself.
    """
    nets: list[Classifier] = []
    notes: list[str] = []
    others = [is_foreign(file) for file in files]
    if foreign is not None and not any(others):
        raise UsageError(
            f"{files[0]}: a checkpoint of this toolkit says its architecture and preprocessing itself; "
            "leave --arch and --preprocessing out"
        )
    for file, other in zip(files, others, strict=True):
        if other:
            net, lines = load_foreign(file, foreign, tuple(dataset.classes))
            notes += lines
        else:
            net = checkpoint.classifier_of(checkpoint.load(file), file)
        _refuse_other_data(net, file, dataset)
        if nets and net.spec.crop != nets[0].spec.crop:
            raise UsageError(
                f"{file} takes {net.spec.crop} px crops, but {files[0]} takes {nets[0].spec.crop}: "
                "an ensemble shares its crops"
            )
        nets.append(net)
    return nets, notes


def normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights of `count` checkpoints that sum to 1; equal ones for None.

    Raises:
        UsageError: another number of weights, or one that is negative, no number, or all zero.
    """
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count:
        raise UsageError(
            f"{len(given)} weights for {count} checkpoint{'' if count == 1 else 's'}; give one for each"
        )
    if not all(0 <= weight < math.inf for weight in given) or sum(given) <= 0:
        shown = ",".join(f"{weight:g}" for weight in given)
        raise UsageError(f"weights {shown}: each must be 0 or more, and one above 0")
    return [weight / sum(given) for weight in given]


def _refuse_other_data(net: Classifier, file: Path, dataset: Dataset) -> None:
    spec = net.spec
    if list(spec.classes) != dataset.classes:
        ours, theirs = set(spec.classes), set(dataset.classes)
        missing, extra = sorted(ours - theirs), sorted(theirs - ours)
        detail = "; ".join(
            f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
            for what, names in (("only in the checkpoint", missing), ("only in the data", extra))
            if names
        )
        raise UsageError(
            f"{file}: trained on {len(spec.classes)} classes, {dataset.url} has {len(dataset.classes)} "
            f"({detail or 'in another order'}); evaluate on data with the same classes"
        )
    if spec.size != dataset.image.size:
        raise UsageError(
            f"{file}: trained on pictures with a shorter side of {spec.size} px, {dataset.url} has "
            f"{dataset.image.size} px; prepare the data with --size {spec.size}"
        )
