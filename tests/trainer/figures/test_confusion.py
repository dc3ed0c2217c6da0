"""The most confused pairs of a confusion matrix, and its figure."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pipeline.images.figure import figure_bytes
from trainer.figures.confusion import draw_confusion, most_confused


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 8), count=st.integers(1, 70))
def test_the_worst_pairs_are_those_of_a_plain_sort(seed, classes, count):
    matrix = np.random.default_rng(seed).integers(0, 4, (classes, classes))
    pairs = [(-matrix[a, b], a, b) for a in range(classes) for b in range(classes) if a != b and matrix[a, b]]
    expected = [(a, b, -negative, matrix[a].sum()) for negative, a, b in sorted(pairs)[:count]]
    assert [(p.label, p.predicted, p.count, p.of) for p in most_confused(matrix, count)] == expected


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def test_few_classes_stand_by_name_with_their_numbers():
    matrix = np.array([[8, 2, 0], [1, 5, 0], [0, 0, 0]])
    figure = draw_confusion(matrix, ["$a_1$", "<b>", "猫"], "run on data, val")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()][:2] == ["$a_1$", "<b>"]
    assert texts_of(axes) == ["8", "2", "1", "5"]
    shares = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0], [1 / 6, 5 / 6, 0], [np.nan] * 3])
    assert "(no images)" in axes.get_yticklabels()[2].get_text()
    assert "13 of 16 images right" in figure.get_suptitle()
    assert figure_bytes(figure, "png")


@pytest.mark.parametrize("classes", [41, 1000])
def test_many_classes_are_blocks_and_a_list_of_pairs(classes):
    matrix = 5 * np.eye(classes, dtype=np.int64)
    matrix[3, 40] = 9
    figure = draw_confusion(matrix, [f"class {k}" for k in range(classes)], "t")
    blocks, pairs = figure.axes[:2]
    shares = blocks.images[0].get_array()
    assert len(shares) <= 50
    assert np.isclose(np.nanmax(np.diag(shares)), 1)
    assert texts_of(pairs) == ["class 3 → class 40: 9 of 14"]
    assert figure_bytes(figure, "png")


@pytest.mark.parametrize("classes", [2, 17, 41])
def test_long_names_leave_room_for_the_matrix(classes):
    names = ["W" * 60, *["漢" * 60] * (classes - 1)]
    figure = draw_confusion(3 * np.eye(classes, dtype=np.int64), names, "W" * 200)
    figure_bytes(figure, "png")  # warns if the layout collapses
    box = figure.axes[0].get_window_extent()
    assert box.width > 150
    assert box.width == pytest.approx(box.height, rel=0.02)
