"""The PCA plot: heights of the bars, colors of the strips, and nothing that overlaps."""

from itertools import combinations

import numpy as np
import pytest
from helpers.figures import pixels_of
from helpers.folders import draw_image

from pipeline.images.figure import new_figure, styled
from pipeline.images.pca_plot import colors_along, draw_pca_plot
from pipeline.images.statistics import Moments, Statistics, statistics_of


def along_gray(deviations=(60.0, 20.0, 5.0)):
    """Statistics whose principal directions are gray, red against blue, and green against both."""
    vectors = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])
    return Statistics(
        pixels=1,
        mean=(128.0, 128.0, 128.0),
        covariance=((0.0,) * 3,) * 3,
        eigenvalues=tuple(d * d for d in deviations),
        eigenvectors=tuple(map(tuple, vectors)),
        measured_on="source",
    )


@styled
def plot(statistics):
    figure = new_figure(7, 2.6)
    draw_pca_plot(figure, statistics)
    return figure


def test_bars_are_the_deviations_and_strips_the_colors():
    statistics = along_gray()
    bars, *strips = plot(statistics).axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([60, 20, 5])
    assert [text.get_text() for text in bars.texts] == ["60.0\n89.4%", "20.0\n9.9%", "5.0\n0.6%"]
    for k, strip in enumerate(strips):
        np.testing.assert_array_equal(strip.images[0].get_array(), colors_along(statistics, k, 256)[None])
    assert strips[1].get_title(loc="left") == "2:   R +0.71   G +0.00   B -0.71"


def test_colors_run_from_two_deviations_below_the_mean_to_two_above():
    first, middle, last = colors_along(along_gray(), 1, 101)[[0, 50, 100]].astype(int)
    reach = 2 * 20 / 2**0.5
    assert np.abs(first - [128 - reach, 128, 128 + reach]).max() <= 0.5
    assert middle.tolist() == [128, 128, 128]
    assert np.abs(last - [128 + reach, 128, 128 - reach]).max() <= 0.5
    assert colors_along(along_gray((900.0, 1.0, 0.0)), 0, 3).tolist() == [[0] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("pixels", [np.full((4, 4, 3), 77, np.uint8), draw_image(0)])
def test_nothing_is_cut_off_or_overlaps_at_the_narrowest(pixels):
    moments = Moments()
    moments.add(pixels)
    figure = plot(statistics_of(moments))
    assert (pixels_of(figure)[:, [0, -1]] == 255).all()
    bars, *strips = figure.axes
    texts = [*bars.texts, *(axes._left_title for axes in figure.axes)]
    boxes = [item.get_window_extent() for item in (*texts, *strips)]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    for box in boxes:
        assert box.x0 >= 0 <= box.y0
        assert box.x1 <= 700
        assert box.y1 <= 260
