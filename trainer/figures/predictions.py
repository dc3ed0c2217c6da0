"""The paper's figure 4 as pictures: predictions with their bars, and rows of neighbours."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.figures.style import (
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    drawable,
    fonts_for,
    new_figure,
    shortened,
    styled,
)
from trainer.inference.neighbors import UNKNOWN, Neighbourhood, Picture, Prediction

_PREDICTION_COLUMNS = 4
_FRAME = 3


@styled
def draw_predictions(predictions: Sequence[Prediction], names: Sequence[str], title: str) -> Figure:
    """Draw pictures with the five likeliest classes as bars, the label's in orange.

    Args:
        predictions: one or more.
        names: of the classes, in label order.
        title: the run, the dataset and the split.
    """
    columns = min(_PREDICTION_COLUMNS, len(predictions))
    rows = -(-len(predictions) // columns)
    figure = new_figure(max(2.75 * columns, 5.5), 4.2 * rows + 1.0, title=f"{title}: predictions")
    cells = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.5, 1.45] * rows)
    for axes in cells.ravel():
        axes.set_axis_off()
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, columns)
        _show(cells[2 * row, column], prediction.picture, _label(prediction.picture, names), 11)
        _draw_bars(cells[2 * row + 1, column], prediction, names)
    _note(figure, "bars: probability, 0 to 1; orange: the picture's label, blue: other classes")
    return figure


def _draw_bars(axes: Axes, prediction: Prediction, names: Sequence[str]) -> None:
    for place, (label, probability) in enumerate(
        zip(prediction.classes, prediction.probabilities, strict=True)
    ):
        colour = ORANGE if label == prediction.picture.label else SKY
        axes.barh(place, probability, color=colour, height=0.82)
        text = drawable(shortened(names[label], 21))
        axes.text(0.015, place, text, va="center", fontsize=9, family=fonts_for(text))
        axes.text(1.0, place, f"{probability:.1%}", va="center", ha="right", fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_ylim(4.6, -0.6)
    axes.axvline(0, color=GREY, linewidth=1)


@styled
def draw_neighbours(neighbourhoods: Sequence[Neighbourhood], names: Sequence[str], title: str) -> Figure:
    """Draw a row for each query: the picture, and right of it its nearest, each with its distance.

    Args:
        neighbourhoods: one or more.
        names: of the classes, in label order.
        title: the run, the dataset and what was searched.
    """
    columns = 1 + max(len(one.found) for one in neighbourhoods)
    width = max(1.62 * columns + 0.3, 6.0)
    figure = new_figure(width, 2.05 * len(neighbourhoods) + 1.0, title=f"{title}: nearest pictures")
    cells = figure.subplots(
        len(neighbourhoods), columns + 1, squeeze=False, width_ratios=[1, 0.12, *[1] * (columns - 1)]
    )
    for axes in cells.ravel():
        axes.set_axis_off()
    for row, one in zip(cells, neighbourhoods, strict=True):
        _show(row[0], one.query, _label(one.query, names), 10)
        for axes, picture, distance in zip(row[2:], one.found, one.distances, strict=False):
            _show(axes, picture, f"{_label(picture, names)}\n{distance:.4g}", 9)
            if one.query.label != UNKNOWN:
                _frame(axes, picture.label == one.query.label)
    note = "left: the query; numbers: Euclidean distance of the last hidden layer's features"
    if any(one.query.label != UNKNOWN for one in neighbourhoods):
        note += "; framed green and solid: of the query's class, red and dashed: of another"
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


def _show(axes: Axes, picture: Picture, text: str, size: float) -> None:
    axes.imshow(picture.crop, aspect="equal")
    axes.set_title(drawable_lines(text), fontsize=size, family=fonts_for(text), pad=4)


def drawable_lines(text: str) -> str:
    """As `drawable`, line by line."""
    return "\n".join(drawable(line) for line in text.splitlines())


def _label(picture: Picture, names: Sequence[str]) -> str:
    return shortened(picture.name if picture.label == UNKNOWN else names[picture.label], 20)


def _note(figure: Figure, text: str) -> None:
    width = round(figure.get_size_inches()[0] * 13)
    figure.supxlabel("\n".join(textwrap.wrap(text, width)), fontsize=9, x=0.01, ha="left")
