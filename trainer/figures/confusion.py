"""Figure of a confusion matrix, by class or in blocks of classes, and its most confused pairs.

Shapes: K classes. Rows are labels, columns predicted classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from pipeline.images.figure import BLUE, new_figure, shortened, styled

Matrix = NDArray[np.int64]
"""int64 (K, K), number of images by label (row) and predicted class (column)."""

MOST_NAMED = 40
"""Up to this many classes, the axes name every class; beyond, the matrix is drawn in blocks."""
_MOST_NUMBERED = 16  # up to this many classes, the cells hold counts
# Blocks of neighboring labels per axis; ImageNet's sorted WNIDs put related classes side by side.
_BLOCKS = 50
_PAIRS = 25
_NO_IMAGES = "0.85"  # light gray


@dataclass(frozen=True)
class Pair:
    """A class and one of the wrong classes predicted for its images.

    Attributes:
        label: Class number of the label.
        predicted: Class number of the prediction.
        count: Number of images with this label and prediction.
        of: Number of images with this label.
    """

    label: int
    predicted: int
    count: int
    of: int


def most_confused(matrix: Matrix, count: int) -> list[Pair]:
    """Return the off-diagonal pairs with the most images, most first; ties go to the lower class numbers.

    Args:
        matrix: int64 (K, K), rows are labels.
        count: Number of pairs; fewer are returned if fewer pairs have images.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    totals = matrix.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    labels, predicted = np.unravel_index(order, wrong.shape)
    return [
        Pair(int(a), int(b), int(wrong[a, b]), int(totals[a]))
        for a, b in zip(labels, predicted, strict=True)
        if wrong[a, b]
    ]


@styled
def draw_confusion(matrix: Matrix, names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix, normalized by the number of images of each label.

    Up to 40 classes, the axes name every class, and rows of labels without images are gray. Beyond, each
    cell is a block of neighboring labels, on a logarithmic scale, and the most confused pairs are listed
    beside it, as bars.

    Args:
        matrix: int64 (K, K), rows are labels.
        names: Names of the classes, in label order.
        title: Title: the run, the dataset and the split.
    """
    images, right = int(matrix.sum()), int(np.trace(matrix))
    text = f"{title}: {right:,} of {images:,} images right"
    if len(matrix) <= MOST_NAMED:
        side = max(5.6, 2.4 + 0.42 * len(matrix))
        figure = new_figure(side + 1.2, side, text)
        axes = figure.subplots()
        image = _draw_named(axes, matrix, names)
    else:
        figure = new_figure(13.5, 7, text)
        axes, beside = figure.subplots(1, 2, width_ratios=(1.25, 1))
        image = _draw_blocks(axes, matrix)
        _draw_pairs(beside, matrix, names)
    axes.set_ylabel("label")
    shares = FuncFormatter(lambda share, _: f"{100 * share:.3g}%")
    figure.colorbar(image, ax=axes, label="share of the label's images", shrink=0.75, format=shares)
    return figure


def _draw_named(axes: Axes, matrix: Matrix, names: Sequence[str]) -> AxesImage:
    shares, empty = _shares(matrix), matrix.sum(axis=1) == 0
    blues = colormaps["Blues"].with_extremes(bad=_NO_IMAGES)
    image = axes.imshow(np.where(empty[:, None], np.nan, shares), cmap=blues, vmin=0, vmax=1)
    numbered = len(matrix) <= _MOST_NUMBERED
    classes = [shortened(name, 22) for name in names]
    labels = [f"{name} (no images)" if none else name for name, none in zip(classes, empty, strict=True)]
    size = 10 if numbered else 8
    axes.set_yticks(range(len(names)), labels, fontsize=size)
    axes.set_xticks(
        range(len(names)), classes, fontsize=size, rotation=45, ha="right", rotation_mode="anchor"
    )
    axes.set_xlabel("predicted")
    for row, column in np.argwhere(matrix) if numbered else []:
        color = "white" if shares[row, column] > 0.6 else "black"
        number = f"{matrix[row, column]:,}"
        axes.text(column, row, number, ha="center", va="center", color=color, fontsize=9)
    return image


def _draw_blocks(axes: Axes, matrix: Matrix) -> AxesImage:
    edges = np.linspace(0, len(matrix), _BLOCKS + 1).round().astype(int)
    blocks = np.add.reduceat(np.add.reduceat(matrix, edges[:-1], axis=0), edges[:-1], axis=1)
    shares = _shares(blocks)
    least = max(float(shares[shares > 0].min(initial=1.0)), 1e-4)
    axes.set_xlabel("predicted class number")
    axes.set_title(f"{len(matrix):,} classes in {_BLOCKS} × {_BLOCKS} blocks; logarithmic")
    return axes.imshow(
        np.where(shares > 0, np.maximum(shares, least), np.nan),
        cmap="Blues",
        norm=LogNorm(least, 1),
        extent=(-0.5, len(matrix) - 0.5, len(matrix) - 0.5, -0.5),
    )


def _draw_pairs(axes: Axes, matrix: Matrix, names: Sequence[str]) -> None:
    pairs = most_confused(matrix, _PAIRS)
    axes.set_title(f"the {len(pairs)} most confused pairs: label → prediction")
    axes.barh(range(len(pairs)), [pair.count for pair in pairs], color=BLUE, height=0.28)
    axes.set_ylim(len(pairs) - 0.3, -0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("images")
    for number, pair in enumerate(pairs):
        classes = f"{shortened(names[pair.label], 26)} → {shortened(names[pair.predicted], 26)}"
        axes.text(0.0, number - 0.2, f"{classes}: {pair.count} of {pair.of}", va="bottom", fontsize=8)


def _shares(matrix: Matrix) -> NDArray[np.float64]:
    """Divide each row by its sum; rows without images stay 0."""
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares: NDArray[np.float64] = matrix / totals
    return shares
