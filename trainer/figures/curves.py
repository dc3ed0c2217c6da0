"""Curves of runs over their epochs: loss, accuracy, learning rate and throughput."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from pipeline.arguments import check_word
from pipeline.errors import UsageError
from pipeline.images.figure import COLORS, INK, new_figure, shortened, styled
from trainer.runs.metrics_file import METRICS_FILE, read_metrics
from trainer.runs.records import MetricsRow

Panel = Literal["loss", "top-1", "top-5", "lr", "throughput"]
PANELS: tuple[Panel, ...] = ("loss", "top-1", "top-5", "lr")
"""Panels drawn by default."""

# A learning rate that changes by more than this factor is drawn on a logarithmic axis.
_WIDE = 20.0
_MARKERS = ("o", "s", "^", "D")
_MANY = 30  # curves of so many points are drawn without markers


@dataclass(frozen=True)
class Course:
    """Metrics of a run.

    Attributes:
        name: Name of the run, for the legend.
        rows: Metrics of the finished epochs, and of the validations within epochs, in order.
    """

    name: str
    rows: tuple[MetricsRow, ...]

    @property
    def epochs(self) -> tuple[MetricsRow, ...]:
        """The rows of finished epochs."""
        return tuple(row for row in self.rows if row.kind == "epoch")

    def points(self, field: str) -> list[tuple[float, float]]:
        """Return pairs of epochs done and a field's value, where there is one.

        Means over training's batches and speeds are those of whole epochs.
        """
        within = field == "lr" or field.startswith("val_")
        values = [(row.epochs_done, getattr(row, field)) for row in (self.rows if within else self.epochs)]
        return [(at, value) for at, value in values if value is not None]


def read_courses(folders: Sequence[Path]) -> list[Course]:
    """Read the metrics of runs.

    Runs are named after their folders; where folder names are equal, parent folders are added until the
    names differ.

    Args:
        folders: Run folders.

    Raises:
        UsageError: there is no such run, a run has no finished epoch or validation, or its metrics.jsonl is
            damaged.
    """
    courses = []
    for folder, name in zip(folders, _names([path.resolve() for path in folders]), strict=True):
        rows = read_metrics(folder)
        if not rows:
            raise UsageError(
                f"{folder}: holds no {METRICS_FILE} with a finished epoch or validation; name a run's folder"
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

    Panels without a value are left out, such as that of top-5 where no run was validated.

    Args:
        courses: One or more runs; each has its color, and from the eighth on other markers.
        panels: Panels to draw, two per row.
        title: Title of the figure; by default it names the runs and the panels.

    Raises:
        UsageError: There is no such panel, or no panel has a value.
    """
    for panel in panels:
        check_word("panels", panel, Panel)
    drawn = [panel for panel in panels if any(_has_points(courses, field) for field in _PANELS[panel].fields)]
    if not drawn:
        raise UsageError(f"the runs have no {' or '.join(panels)} yet, or were not validated")
    panels = drawn
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    names = ", ".join(course.name for course in courses)
    default = f"{shortened(names, 70)}: {', '.join(panels)} over the epochs"
    figure = new_figure(5 * columns, 3.1 * rows + 0.9, default if title is None else title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, courses, panel)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles: list[Line2D] = []
    if len(courses) > 1:
        handles += [
            Line2D([], [], label=shortened(course.name, 40), **_style(number))
            for number, course in enumerate(courses)
        ]
    if any(_PANELS[panel].train for panel in panels):
        handles += (
            [Line2D([], [], color=INK, label="validation, center crop")]
            if _has_points(courses, "val_loss")
            else []
        )
        handles += [Line2D([], [], color=INK, linestyle="--", label="training, as augmented")]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3))
    return figure


@dataclass(frozen=True)
class _Panel:
    """Quantities of a panel, as fields of `MetricsRow`: one drawn solid, one dashed ("" for none)."""

    title: str
    solid: str
    train: str = ""

    @property
    def fields(self) -> list[str]:
        return [field for field in (self.train, self.solid) if field]


_PANELS: dict[Panel, _Panel] = {
    "loss": _Panel("loss, nats", "val_loss", "train_loss"),
    "top-1": _Panel("top-1 accuracy", "val_top1", "train_top1"),
    "top-5": _Panel("top-5 accuracy", "val_top5"),
    "lr": _Panel("learning rate", "lr"),
    "throughput": _Panel("training images per second", "images_per_second"),
}


def _draw_panel(axes: Axes, courses: Sequence[Course], panel: Panel) -> None:
    shown = _PANELS[panel]
    for field in shown.fields:
        for number, course in enumerate(courses):
            points = course.points(field)
            style = _style(number) if len(points) < _MANY else _style(number) | {"marker": ""}
            line = "--" if field == shown.train else "-"
            axes.plot([at for at, _ in points], [value for _, value in points], line, **style)
    axes.set_title(shown.title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(alpha=0.3)
    lrs = [row.lr for course in courses for row in course.rows]
    if panel == "lr" and min(lrs) > 0 and max(lrs) > _WIDE * min(lrs):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    elif panel.startswith("top"):
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.update_datalim([(1, 0)])  # the margin above is then a share of the whole height
        axes.set_ylim(bottom=0)


def _has_points(courses: Sequence[Course], field: str) -> bool:
    return any(course.points(field) for course in courses)


def _style(number: int) -> dict[str, Any]:
    """Color and marker of a run."""
    marker = _MARKERS[number // len(COLORS) % len(_MARKERS)]
    return {"color": COLORS[number % len(COLORS)], "marker": marker, "markersize": 3.5}
