"""Print the results of an evaluation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.common.console import Column, echo, print_table

if TYPE_CHECKING:
    from trainer import ClassMetrics, Evaluation, LabelScore, LabelSet

# All classes are printed up to _FEW of them, else only the _ENDS worst and the _ENDS best.
_FEW = 20
_ENDS = 10
_COLUMNS = (
    Column("class", 5, names=True),
    Column("images", 2),
    Column("top-1", 4),
    Column("top-5", 3),
    Column("most confused with", 1, names=True),
)


def print_results(result: "Evaluation", scores: Sequence["LabelScore"], labels: Sequence["LabelSet"]) -> None:
    """Print the metrics of the split, and the accuracy by each other label set.

    Args:
        result: The evaluation.
        scores: Accuracy by each other label set.
        labels: The label sets, in the order of `scores`.
    """
    from trainer.evaluation.results import name_of, over_shared, without_images

    metrics, empty = result.metrics, without_images(result)
    echo(
        f"{name_of(result)}: {metrics.samples:,} {result.split} images, {result.classes} classes"
        f"{f' ({empty})' if empty else ''}, {result.views}, {result.precision}"
    )
    if over := over_shared(result):
        echo(over)
    if len(result.checkpoints) > 1:
        for file, weight in zip(result.checkpoints, result.ensemble_weights, strict=True):
            echo(f"  {weight:.3f} × {file}")
    _print_share("top-1", metrics.top1, metrics.top1_interval)
    _print_share("top-5", metrics.top5, metrics.top5_interval)
    echo(f"calibration error {metrics.ece:.2%} (15 bins), mean −log probability {metrics.loss:.3f}")
    echo(f"always guessing the largest class: {metrics.largest_class:.2%} top-1")
    for score, found in zip(scores, labels, strict=True):
        more = f"; {score.unlabeled:,} have no label there" if score.unlabeled else ""
        other = f"; {found.strangers:,} of its keys are not in the data" if found.strangers else ""
        echo(f"by the labels of {score.source}: {score.samples:,} images{more}{other}")
        _print_share("top-1", score.top1, score.top1_interval)
        _print_share("top-5", score.top5, score.top5_interval)


def print_classes(result: "Evaluation") -> None:
    """Print a table of classes, worst top-1 first; of more than 20 classes the ten worst and the ten best.

    Classes without images come last, ten at most where there are more than 20 classes.
    """
    from trainer.evaluation.results import by_accuracy

    names = {info.id: _named(info) for info in result.per_class}
    classes = by_accuracy(result.per_class)
    parts = {"classes, worst first": classes}
    if len(classes) > _FEW:
        measured = [info for info in classes if info.samples]
        empty = classes[len(measured) :]
        parts = {f"the {_ENDS} worst classes": measured[:_ENDS], f"the {_ENDS} best": measured[-_ENDS:]}
        if empty:
            first = f", of which the first {_ENDS}" if len(empty) > _ENDS else ""
            parts[f"{len(empty):,} without images{first}"] = empty[:_ENDS]
    for title, shown in parts.items():
        rows = []
        for info in shown:
            other = names[info.confused_with] if info.confused_with else ""
            mistake = f"{other} ({info.confused_share:.0%})" if other else "–"
            shares = ("–" if share is None else f"{share:.1%}" for share in (info.top1, info.top5))
            rows.append([names[info.id], f"{info.samples:,}", *shares, mistake])
        echo()
        print_table(title, _COLUMNS, rows)


def _named(info: "ClassMetrics") -> str:
    """Return a class's id, followed by the first of its names where the name is not the id."""
    return info.id if info.name == info.id else f"{info.id} {info.name.split(',')[0]}"


def _print_share(name: str, share: float, interval: tuple[float, float]) -> None:
    low, high = interval
    echo(
        f"  accuracy {share:7.2%}   error {1 - share:7.2%}   "
        f"95% interval of accuracy {100 * low:.2f}–{high:.2%}",
        bold=name,
    )
