import numpy as np
import pytest
from helpers.folders import draw_image

from pipeline.images.pca_plot import colors_along, draw_pca_plot
from pipeline.images.statistics import Moments, Statistics, statistics_of

BLUE = (0, 114, 178)


def along_gray(deviations=(60.0, 20.0, 5.0), mean=(128.0, 128.0, 128.0)):
    """Statistics whose principal directions are gray, red against blue, and green against both."""
    vectors = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])
    return Statistics(
        pixels=1,
        mean=mean,
        covariance=((0.0,) * 3,) * 3,
        eigenvalues=tuple(d * d for d in deviations),
        eigenvectors=tuple(map(tuple, vectors)),
        measured_on="source",
    )


def bars(plot):
    """(top row, bottom row) of the three bars, from left to right."""
    blue = (plot == BLUE).all(axis=2)
    columns = np.flatnonzero(blue.any(axis=0))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    rows = [np.flatnonzero(blue[:, group[len(group) // 2]]) for group in groups]
    return [(found[0], found[-1]) for found in rows]


def test_the_bars_are_as_high_as_the_deviations():
    plot = draw_pca_plot(along_gray(), 1858)
    found = bars(plot)
    assert len(found) == 3
    bottom = found[0][1]
    assert [b for _, b in found] == [bottom] * 3
    heights = [bottom - top for top, _ in found]
    assert heights[1] / heights[0] == pytest.approx(20 / 60, abs=0.02)
    assert heights[2] / heights[0] == pytest.approx(5 / 60, abs=0.02)


def test_the_strips_run_from_two_deviations_below_the_mean_to_two_above():
    statistics = along_gray()
    first, middle, last = colors_along(statistics, 1, 101)[[0, 50, 100]].astype(int)
    reach = 2 * 20 / 2**0.5
    assert np.abs(first - [128 - reach, 128, 128 + reach]).max() <= 0.5
    assert middle.tolist() == [128, 128, 128]
    assert np.abs(last - [128 + reach, 128, 128 - reach]).max() <= 0.5
    assert colors_along(along_gray((900.0, 1.0, 0.0)), 0, 3).tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_the_plot_shows_the_strips_with_nothing_cut_off():
    statistics = along_gray()
    plot = draw_pca_plot(statistics, 1858)
    assert plot.dtype == np.uint8
    assert plot.shape[1:] == (1858, 3)
    ends = {tuple(colors_along(statistics, k, 2)[end].tolist()) for k in range(3) for end in (0, 1)}
    shown = {tuple(color) for color in np.unique(plot.reshape(-1, 3), axis=0).tolist()}
    assert ends <= shown
    for edge in (plot[-8:], plot[:, :8], plot[:, -8:]):
        assert (edge == 255).all()


def test_text_does_not_run_into_its_neighbor_at_the_narrowest():
    plot = draw_pca_plot(along_gray((114.3, 33.8, 16.9)), 10)
    assert plot.shape[1] == 1300
    ink = (plot[:40] < 128).any(axis=(0, 2))  # rows of the two titles
    gaps = np.diff(np.flatnonzero(ink))
    assert (gaps > 18).sum() == 1


@pytest.mark.parametrize("pixels", [np.full((4, 4, 3), 77, np.uint8), draw_image(0)])
def test_flat_and_ordinary_images(pixels):
    moments = Moments()
    moments.add(pixels)
    statistics = statistics_of(moments)
    plot = draw_pca_plot(statistics, 1400)
    mean = np.rint(statistics.mean).astype(np.uint8)
    assert (plot == mean).all(axis=2).any()
