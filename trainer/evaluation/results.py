"""Formats of an evaluation: JSON, a Markdown table beside published results, the confusion matrix as CSV."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.storage.atomic import write_bytes
from pipeline.text import visible
from trainer.evaluation.evaluate import ClassMetrics, Evaluation
from trainer.evaluation.label_sets import LabelScore
from trainer.evaluation.metrics import Interval, Metrics
from trainer.runs.class_match import imagenet_wnids


def name_of(evaluation: Evaluation) -> str:
    """Return the path of the only checkpoint, or "ensemble of N"."""
    models = len(evaluation.checkpoints)
    return evaluation.checkpoints[0] if models == 1 else f"ensemble of {models}"


def markdown(evaluation: Evaluation, scores: Sequence[LabelScore] = ()) -> str:
    """Format the errors as a Markdown table; on ImageNet's validation set, published results follow.

    Args:
        evaluation: The evaluation, first row of the table.
        scores: Scores by other labels, one row each.
    """
    metrics, name = evaluation.metrics, name_of(evaluation)
    measured: list[tuple[str, Metrics | LabelScore]] = [(name, metrics)]
    measured += [(f"{name}, labels of {Path(score.source).name}", score) for score in scores]
    rows = [
        (
            title,
            evaluation.views,
            f"{found.samples:,}",
            _error(found.top1, found.top1_interval),
            _error(found.top5, found.top5_interval),
        )
        for title, found in measured
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
    cells = [[visible(cell).replace("|", r"\|") for cell in line] for line in lines]
    table = "".join(f"| {' | '.join(line)} |\n" for line in cells)
    return f"{table}\n{over}.\n" if (over := over_shared(evaluation)) else table


def write_json(path: Path, evaluation: Evaluation, scores: Sequence[LabelScore] = ()) -> None:
    """Write an evaluation as JSON, atomically, without predictions and confusion matrix: they have own files.

    Keys: `checkpoints`, `ensemble_weights`, `split`, `views`, `precision`, `classes`, `shared_classes`,
    `metrics`, `per_class`, `labels` (from `scores`) and `notes`; see `Evaluation`, `SharedClasses`,
    `Metrics`, `ClassMetrics` and `LabelScore`.

    Raises:
        RunError: the file cannot be written.
    """
    shared = evaluation.shared
    values = {
        "checkpoints": evaluation.checkpoints,
        "ensemble_weights": evaluation.ensemble_weights,
        "split": evaluation.split,
        "views": evaluation.views,
        "precision": evaluation.precision,
        "classes": evaluation.classes,
        "shared_classes": {
            "shared": len(shared.labels),
            "data": shared.data,
            "networks": shared.networks,
            "by": shared.by,
            "images_left_out": shared.images_left_out,
        },
        "metrics": evaluation.metrics,
        "per_class": evaluation.per_class,
        "labels": scores,
        "notes": evaluation.notes,
    }
    write_bytes(path, json.dumps(values, indent=1, default=asdict).encode() + b"\n")


def by_accuracy(per_class: Sequence[ClassMetrics]) -> list[ClassMetrics]:
    """Sort classes by top-1, then top-5, then label, worst first; those without images come last."""
    return sorted(per_class, key=lambda info: (not info.samples, info.top1 or 0.0, info.top5 or 0.0))


def over_shared(evaluation: Evaluation) -> str:
    """Return which classes the evaluation is over, or "" where networks and dataset have the same ids."""
    shared = evaluation.shared
    networks = " and ".join(f"{count:,}" for count in shared.networks)
    by = " and ".join(dict.fromkeys(shared.by))
    if shared.all_shared:
        return "" if by == "id" else f"the classes of networks and data are matched by {by}"
    owner = "networks'" if len(shared.networks) > 1 else "network's"
    return (
        f"over {len(shared.labels):,} shared classes, of the {owner} {networks} and the data's "
        f"{shared.data:,}, matched by {by}; left out are the logits of other classes, and "
        f"{shared.images_left_out:,} images"
    )


def without_images(evaluation: Evaluation) -> str:
    """Return a remark on the classes without images in the split, or "" where every class has some."""
    empty = sum(not info.samples for info in evaluation.per_class)
    return f"{empty:,} without images, in no average" if empty else ""


def write_confusion(path: Path, evaluation: Evaluation) -> None:
    """Write the confusion matrix as CSV, atomically: one row per label, one column per predicted class.

    The first row and the first column hold class ids.

    Raises:
        RunError: the file cannot be written.
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


_IMAGES = 50_000


@dataclass(frozen=True)
class Published:
    """A published result on the 50,000 validation images of ILSVRC 2012.

    Attributes:
        name: Name of the network.
        source: Publication that the numbers are from.
        views: Views that probabilities were averaged over, in the words of `EvalView`.
        top1_error, top5_error: Share of images, 0..1, predicted wrong.
    """

    name: str
    source: str
    views: str
    top1_error: float
    top5_error: float


RESULTS = (
    # Krizhevsky et al. 2012, table 2. Its other rows use networks pre-trained on more than ILSVRC 2012.
    Published("AlexNet, one network", "the 2012 paper, table 2", "ten-crop", 0.407, 0.182),
    Published("AlexNet, five networks", "the 2012 paper, table 2", "ten-crop", 0.381, 0.164),
    Published("AlexNet, the code's own run", "the log of the released code", "ten-crop", 0.40664, 0.18210),
    # torchvision documents accuracies of 56.522 % and 79.066 % for AlexNet_Weights.IMAGENET1K_V1.
    Published("torchvision's alexnet", "torchvision's documentation", "center", 0.43478, 0.20934),
)


def is_imagenet_validation(class_ids: Iterable[str], images: int) -> bool:
    """Return whether class ids and number of images are those of the ILSVRC 2012 validation set."""
    return images == _IMAGES and sorted(class_ids) == list(imagenet_wnids())
