"""Figures like the paper's figure 4: images with their top-5 predictions, and images with their neighbors."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.images.figure import (
    GREEN,
    ORANGE,
    SKY,
    VERMILION,
    new_figure,
    shortened,
    show_pixels,
    styled,
    wrapped,
)
from trainer.inference.examples import UNKNOWN, NamedImage, Prediction
from trainer.inference.neighbors import Neighborhood

_PREDICTION_COLUMNS = 4
_FRAME = 3  # line width, points


@styled
def draw_predictions(predictions: Sequence[Prediction], names: Sequence[str], title: str) -> Figure:
    """Draw images with bars of their five most probable classes; the label's bar is orange.

    Args:
        predictions: Predictions, one or more.
        names: Names of the classes, in label order.
        title: Title: the run, the dataset and the split.
    """
    columns = min(_PREDICTION_COLUMNS, len(predictions))
    rows = -(-len(predictions) // columns)
    figure = new_figure(max(2.75 * columns, 5.5), 4.2 * rows + 1.0, f"{title}: predictions")
    cells = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.5, 1.45] * rows)
    for axes in cells.ravel():
        axes.set_axis_off()
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, columns)
        show_pixels(cells[2 * row, column], prediction.image.crop, _label(prediction.image, names))
        _draw_bars(cells[2 * row + 1, column], prediction, names)
    _note(figure, "bars: probability, 0 to 1; orange: the image's label, blue: other classes")
    return figure


def _draw_bars(axes: Axes, prediction: Prediction, names: Sequence[str]) -> None:
    for row, (label, probability) in enumerate(
        zip(prediction.classes, prediction.probabilities, strict=True)
    ):
        color = ORANGE if label == prediction.image.label else SKY
        axes.barh(row, probability, color=color, height=0.82)
        axes.text(0.015, row, shortened(names[label], 21), va="center", fontsize=9)
        axes.text(1.0, row, f"{probability:.1%}", va="center", ha="right", fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_ylim(4.6, -0.6)
    axes.axvline(0, color="gray", linewidth=1)


@styled
def draw_neighbors(neighborhoods: Sequence[Neighborhood], names: Sequence[str], title: str) -> Figure:
    """Draw one row per query: the query image, then its nearest images with their distances.

    Args:
        neighborhoods: Queries with their neighbors, one or more.
        names: Names of the classes, in label order.
        title: Title: the run, the dataset and the split that was searched.
    """
    columns = 1 + max(len(one.found) for one in neighborhoods)
    width = max(1.62 * columns + 0.3, 6.0)
    figure = new_figure(width, 2.05 * len(neighborhoods) + 1.0, f"{title}: nearest images")
    cells = figure.subplots(
        len(neighborhoods), columns + 1, squeeze=False, width_ratios=[1, 0.12, *[1] * (columns - 1)]
    )
    for axes in cells.ravel():
        axes.set_axis_off()
    for row, one in zip(cells, neighborhoods, strict=True):
        show_pixels(row[0], one.query.crop, _label(one.query, names), fontsize=10)
        for axes, image, distance in zip(row[2:], one.found, one.distances, strict=False):
            show_pixels(axes, image.crop, f"{_label(image, names)}\n{distance:.4g}", fontsize=9)
            if one.query.label != UNKNOWN:
                _frame(axes, image.label == one.query.label)
    note = "left: the query; numbers: Euclidean distance of the last hidden layer's features"
    if any(one.query.label != UNKNOWN for one in neighborhoods):
        note += "; solid green frame: same class as the query, dashed red frame: another class"
    _note(figure, note)
    return figure


def _frame(axes: Axes, same: bool) -> None:
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(
            visible=True,
            linewidth=_FRAME,
            color=GREEN if same else VERMILION,
            linestyle="-" if same else "--",
        )


def _label(image: NamedImage, names: Sequence[str]) -> str:
    return shortened(image.name if image.label == UNKNOWN else names[image.label], 20)


def _note(figure: Figure, text: str) -> None:
    figure.supxlabel(wrapped(text, 1.2 * figure.get_figwidth()), fontsize=9, x=0.01, ha="left")
