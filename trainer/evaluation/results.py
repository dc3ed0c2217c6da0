"""An evaluation as JSON, as a Markdown table to paste, and its confusion matrix as CSV."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.storage.atomic import write_bytes
from trainer.evaluation.evaluate import ClassMetrics, Evaluation
from trainer.evaluation.label_sets import LabelScore
from trainer.evaluation.metrics import Interval


def name_of(evaluation: Evaluation) -> str:
    """What was measured, in a word: the checkpoint, or an ensemble of so many."""
    models = len(evaluation.checkpoints)
    return evaluation.checkpoints[0] if models == 1 else f"ensemble of {models}"


def as_json(evaluation: Evaluation, scores: Sequence[LabelScore] = ()) -> dict[str, Any]:
    """Everything but the predictions and the confusion matrix, which have files of their own.

    Keys: `checkpoints`, `weights`, `split`, `views`, `classes`, `metrics`, `per_class`, `labels` (of
    `scores`) and `notes`; see `Evaluation`, `Metrics`, `ClassMetrics` and `LabelScore`.
    """
    return {
        "checkpoints": list(evaluation.checkpoints),
        "weights": list(evaluation.weights),
        "split": evaluation.split,
        "views": evaluation.views,
        "classes": evaluation.classes,
        "metrics": asdict(evaluation.metrics),
        "per_class": [asdict(info) for info in evaluation.per_class],
        "labels": [asdict(score) for score in scores],
        "notes": list(evaluation.notes),
    }


def markdown(evaluation: Evaluation, scores: Sequence[LabelScore] = ()) -> str:
    """A Markdown table of errors; beside published ones where the images are ImageNet's validation set.

    Args:
        evaluation: what was measured.
        scores: by other labels, a row each.
    """
    metrics, name = evaluation.metrics, name_of(evaluation)
    rows = [
        (
            name,
            evaluation.views,
            f"{metrics.samples:,}",
            _error(metrics.top1, metrics.top1_interval),
            _error(metrics.top5, metrics.top5_interval),
        )
    ]
    rows += [
        (
            f"{name}, labels of {Path(score.source).name}",
            evaluation.views,
            f"{score.samples:,}",
            _error(score.top1, score.top1_interval),
            _error(score.top5, score.top5_interval),
        )
        for score in scores
    ]
    if is_imagenet_validation((info.id for info in evaluation.per_class), metrics.samples):
        rows += [
            (
                f"{result.name} ({result.source})",
                result.views,
                f"{metrics.samples:,}",
                f"{100 * result.top1_error:.5g} %",
                f"{100 * result.top5_error:.5g} %",
            )
            for result in RESULTS
        ]
    head = ("network", "views", "images", "top-1 error (95 % interval)", "top-5 error (95 % interval)")
    lines = [head, ("---", "---", "---:", "---:", "---:"), *rows]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def write_json(path: Path, evaluation: Evaluation, scores: Sequence[LabelScore] = ()) -> None:
    """Write `as_json`, atomically.

    Raises:
        RunError: it cannot be written.
    """
    write_bytes(path, json.dumps(as_json(evaluation, scores), indent=1).encode() + b"\n")


def by_accuracy(per_class: Sequence[ClassMetrics]) -> list[ClassMetrics]:
    """The classes that have images, worst top-1 first; of equal ones the lower top-5, then the label."""
    measured = [info for info in per_class if info.samples]
    return sorted(measured, key=lambda info: (info.top1 or 0.0, info.top5 or 0.0))


def write_confusion(path: Path, evaluation: Evaluation) -> None:
    """Write the confusion matrix as CSV, atomically: a row for each label, a column for each answer.

    The first row and the first column hold class ids.

    Raises:
        RunError: it cannot be written.
    """
    text = io.StringIO()
    ids = [info.id for info in evaluation.per_class]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["label", *ids])
    rows.writerows([class_id, *row] for class_id, row in zip(ids, evaluation.confusion.tolist(), strict=True))
    write_bytes(path, text.getvalue().encode())


def _error(accuracy: float, interval: Interval) -> str:
    low, high = interval
    return f"{100 * (1 - accuracy):.2f} % ({100 * (1 - high):.2f}–{100 * (1 - low):.2f})"


# SHA-256 of ILSVRC 2012's 1,000 WNIDs, sorted and joined by newlines.
_WNIDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
_IMAGES = 50_000


@dataclass(frozen=True)
class Published:
    """A published result: errors are shares of the 50,000 validation images, 0..1."""

    name: str
    source: str
    views: str
    top1_error: float
    top5_error: float


RESULTS = (
    # Krizhevsky et al. 2012, table 2. Its other rows are of networks trained on more than ILSVRC 2012.
    Published("AlexNet, one network", "the 2012 paper, table 2", "ten-crop", 0.407, 0.182),
    Published("AlexNet, five networks", "the 2012 paper, table 2", "ten-crop", 0.381, 0.164),
    Published("AlexNet, the code's own run", "the log of the released code", "ten-crop", 0.40664, 0.18210),
    # 56.522 % and 79.066 % are right, as torchvision documents AlexNet_Weights.IMAGENET1K_V1.
    Published("torchvision's alexnet", "torchvision's documentation", "center", 0.43478, 0.20934),
)


def is_imagenet_validation(class_ids: Iterable[str], images: int) -> bool:
    """Whether a split is ILSVRC 2012's validation set, by its classes' WNIDs and its size."""
    joined = "\n".join(sorted(class_ids)).encode()
    return images == _IMAGES and hashlib.sha256(joined).hexdigest() == _WNIDS
