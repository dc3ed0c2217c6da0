"""Curves of runs over their epochs: loss, accuracy, learning rate and throughput."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from pipeline.errors import UsageError
from trainer.figures.style import COLORS, INK, drawable, fonts_for, new_figure, shortened, styled
from trainer.runs.metrics_file import METRICS_FILE, read_metrics
from trainer.runs.records import EpochMetrics

Panel = Literal["loss", "top-1", "top-5", "lr", "throughput"]
PANELS: tuple[Panel, ...] = ("loss", "top-1", "top-5", "lr")
"""Panels drawn by default."""

# A learning rate that changes by more than this factor is drawn on a logarithmic axis.
_WIDE = 20.0
_MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True)
class Course:
    """Metrics of a run.

    Attributes:
        name: Name of the run, for the legend.
        rows: Metrics of each finished epoch, in order.
    """

    name: str
    rows: tuple[EpochMetrics, ...]


def read_courses(folders: Sequence[Path]) -> list[Course]:
    """Read the metrics of runs.

    Runs are named after their folders; where folder names are equal, parent folders are added until the
    names differ.

    Args:
        folders: Run folders.

    Raises:
        UsageError: there is no such run, a run has no finished epoch, or its metrics.jsonl is damaged.
    """
    courses = []
    for folder, name in zip(folders, _names([path.resolve() for path in folders]), strict=True):
        rows = read_metrics(folder)
        if not rows:
            raise UsageError(
                f"{folder}: holds no {METRICS_FILE} with a finished epoch; name a run's folder"
                if folder.is_dir()
                else f"{folder}: no such run; name a run's folder"
            )
        courses.append(Course(name, tuple(rows)))
    return courses


def _names(paths: Sequence[Path]) -> list[str]:
    """Name each path by as few of its last parts as distinguish it from the others."""
    parts = 1
    longest = max((len(path.parts) for path in paths), default=1)
    while True:
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(set(paths)) or parts >= longest:
            return names
        parts += 1


@styled
def draw_curves(
    courses: Sequence[Course], panels: Sequence[Panel] = PANELS, title: str | None = None
) -> Figure:
    """Plot runs together, one panel per quantity; training is dashed, validation solid.

    Args:
        courses: One or more runs; each has its color, and from the eighth on other markers.
        panels: Panels to draw, two per row.
        title: Title of the figure; by default it names the runs and the panels.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    names = ", ".join(course.name for course in courses)
    default = f"{shortened(names, 70)}: {', '.join(panels)} over the epochs"
    figure = new_figure(5 * columns, 3.1 * rows + 0.9, title=default if title is None else title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _DRAW[panel](axes, courses)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    _legend(figure, courses, panels)
    return figure


def _legend(figure: Figure, courses: Sequence[Course], panels: Sequence[Panel]) -> None:
    handles: list[Line2D] = []
    if len(courses) > 1:
        handles += [
            Line2D([], [], color=_color(k), marker=_marker(k), label=drawable(shortened(course.name, 40)))
            for k, course in enumerate(courses)
        ]
    if {"loss", "top-1"} & set(panels):
        handles += [
            Line2D([], [], color=INK, label="validation, center crop"),
            Line2D([], [], color=INK, linestyle="--", label="training, as augmented"),
        ]
    if handles:
        fonts = {"family": fonts_for(*(course.name for course in courses)), "size": 10}
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3), prop=fonts)


def _line(
    axes: Axes,
    courses: Sequence[Course],
    value: Callable[[EpochMetrics], float],
    style: str = "-",
) -> None:
    for number, course in enumerate(courses):
        epochs = [row.epoch for row in course.rows]
        axes.plot(
            epochs,
            [value(row) for row in course.rows],
            style,
            color=_color(number),
            marker=_marker(number) if len(epochs) < 30 else "",
            markersize=3.5,
        )


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _marker(number: int) -> str:
    return _MARKERS[number // len(COLORS) % len(_MARKERS)]


def _draw_loss(axes: Axes, courses: Sequence[Course]) -> None:
    _line(axes, courses, lambda row: row.train_loss, "--")
    _line(axes, courses, lambda row: row.val_loss)
    axes.set_title("loss, nats", fontsize=11, loc="left")
    axes.set_ylim(bottom=0)


def _draw_top1(axes: Axes, courses: Sequence[Course]) -> None:
    _line(axes, courses, lambda row: row.train_top1, "--")
    _line(axes, courses, lambda row: row.val_top1)
    _in_percent(axes, "top-1 accuracy")


def _draw_top5(axes: Axes, courses: Sequence[Course]) -> None:
    _line(axes, courses, lambda row: row.val_top5)
    _in_percent(axes, "top-5 accuracy")


def _in_percent(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_lr(axes: Axes, courses: Sequence[Course]) -> None:
    _line(axes, courses, lambda row: row.lr)
    lrs = [row.lr for course in courses for row in course.rows]
    if min(lrs) > 0 and max(lrs) > _WIDE * min(lrs):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.set_ylim(bottom=0)
    axes.set_title("learning rate at the epoch's end", fontsize=11, loc="left")


def _draw_throughput(axes: Axes, courses: Sequence[Course]) -> None:
    _line(axes, courses, lambda row: row.images_per_second)
    axes.set_title("training images per second", fontsize=11, loc="left")
    axes.set_ylim(0, 1.08 * max(row.images_per_second for course in courses for row in course.rows))


_DRAW: dict[Panel, Callable[[Axes, Sequence[Course]], None]] = {
    "loss": _draw_loss,
    "top-1": _draw_top1,
    "top-5": _draw_top5,
    "lr": _draw_lr,
    "throughput": _draw_throughput,
}
