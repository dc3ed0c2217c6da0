"""Figures of predictions and neighbors: bars, colors, frames, and images that keep their aspect ratio."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from pipeline.images.figure import GREEN, ORANGE, SKY, VERMILION, figure_bytes
from trainer.figures.predictions import draw_neighbors, draw_predictions
from trainer.inference.examples import UNKNOWN, NamedImage, Prediction
from trainer.inference.neighbors import Neighborhood

NAMES = ["ant", "$b_1$", "<cat>", "鳥", "a name that is far too long for the space that there is", "fish"]


def image(label, name="key"):
    return NamedImage(name, np.full((32, 32, 3), 40 * (label + 1), np.uint8), label)


def shown(figure):
    """The axes of a figure that show an image."""
    return [axes for axes in figure.axes if axes.images]


def test_bars_are_the_probabilities_and_the_labels_is_orange():
    shares = (0.5, 0.25, 0.125, 0.0625, 0.03)
    figure = draw_predictions([Prediction(image(1), (0, 1, 2, 3, 4), shares)], NAMES, "run on data, val")
    (bars,) = [axes for axes in figure.axes if axes.patches]
    assert [bar.get_width() for bar in bars.patches] == list(shares)
    colors = [to_hex(bar.get_facecolor()).upper() for bar in bars.patches]
    assert colors == [SKY, ORANGE, SKY, SKY, SKY]
    texts = [text.get_text() for text in bars.texts]
    assert texts[0::2][:3] == ["ant", "$b_1$", "<cat>"]
    assert texts[1::2][0] == "50.0%"
    assert len(texts[8]) <= 21
    assert "run on data, val" in figure.get_suptitle()


@pytest.mark.parametrize("count", [1, 5])
def test_every_image_is_shown_square(count):
    predictions = [Prediction(image(0), (0, 1), (0.9, 0.1))] * count
    figure = draw_predictions(predictions, NAMES, "t")
    figure_bytes(figure, "png")
    boxes = [axes.get_window_extent() for axes in shown(figure)]
    assert len(boxes) == count
    for box in boxes:
        assert box.width == pytest.approx(box.height, rel=0.01)
        assert box.width > 150


def test_neighbors_stand_in_rows_framed_by_whether_the_class_is_the_same():
    rows = [
        Neighborhood(image(0), (image(0), image(2)), (1.5, 2.0)),
        Neighborhood(image(2), (image(2), image(2)), (0.25, 12345.678)),
    ]
    figure = draw_neighbors(rows, NAMES, "t")
    cells = shown(figure)
    assert len(cells) == 6
    assert [axes.get_title(loc="left") for axes in cells[:3]] == ["ant", "ant\n1.5", "<cat>\n2"]
    frames = [to_hex(axes.spines["left"].get_edgecolor()).upper() for axes in (*cells[1:3], *cells[4:])]
    assert frames == [GREEN, VERMILION, GREEN, GREEN]
    styles = [axes.spines["left"].get_linestyle() for axes in cells[1:3]]
    assert styles == ["-", "--"]  # color is not the only difference
    figure_bytes(figure, "png")
    lefts = [axes.get_window_extent().x0 for axes in cells[:3]]
    assert lefts == sorted(lefts)


def test_a_query_without_a_label_has_its_files_name_and_no_frames():
    rows = [Neighborhood(image(UNKNOWN, "my cat.jpg"), (image(0),), (1.0,))]
    figure = draw_neighbors(rows, NAMES, "t")
    assert shown(figure)[0].get_title(loc="left") == "my cat.jpg"
    assert not shown(figure)[1].axison
    assert "frame" not in figure.get_supxlabel()
