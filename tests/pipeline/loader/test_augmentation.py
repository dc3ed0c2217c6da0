"""Augmentation as arrays: slices of a global batch, windows by torchvision's rule, uniform corners."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pipeline import EvalView, TrainView
from pipeline.dataset.manifest import ImageFormat
from pipeline.loader.augmentation import draw, scaled_shapes, windows
from pipeline.loader.views import five_corners
from pipeline.seeds import Purpose, random_generator

SIDES = st.integers(1, 400)


def test_each_batch_has_numbers_of_its_own():
    """A key that ends in 0 is another key, though lists of words that end in zeros would be the same."""
    firsts = {float(draw(5, epoch, batch, 1).corner[0, 0]) for epoch in range(9) for batch in range(9)}
    keys = {random_generator(5, Purpose.SAMPLES, *key).random() for key in [(), (0,), (0, 0), (1,), (1, 0)]}
    assert (len(firsts), len(keys)) == (81, 5)


def test_rows_are_those_of_the_whole_batch():
    whole, part = draw(1, 2, 3, 12), draw(1, 2, 3, 12).rows(4, 9)
    for one, other in zip(astuple(whole), astuple(part), strict=True):
        np.testing.assert_array_equal(one[4:9], other)


def test_a_group_has_the_numbers_of_its_first_image_but_its_own_noise():
    alone, groups = draw(1, 2, 3, 12), draw(1, 2, 3, 12, crop_group=5)
    np.testing.assert_array_equal(groups.noise, alone.noise)
    for name in ("corner", "flip", "area", "log_ratio"):
        np.testing.assert_array_equal(
            getattr(groups, name), getattr(alone, name)[[0] * 5 + [5] * 5 + [10] * 2]
        )


def by_torchvision(draws, row, height, width):
    """`RandomResizedCrop.get_params` with given random numbers: (top, left, height, width)."""
    for area, log_ratio in zip(draws.area[row], draws.log_ratio[row], strict=True):
        target, ratio = height * width * area, math.exp(log_ratio)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            v, u = draws.corner[row]
            return int(v * (height - h + 1)), int(u * (width - w + 1)), h, w
    ratio = width / height
    if ratio < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif ratio > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=8), st.integers(0, 1000))
def test_random_resized_windows_are_torchvisions(shapes, batch):
    view, draws = TrainView(augmentation="random-resized-crop"), draw(0, 0, batch, len(shapes))
    found = windows(view, ImageFormat(256, "aspect", 95), draws, np.array(shapes))
    expected = [by_torchvision(draws, row, *shape) for row, shape in enumerate(shapes)]
    assert [tuple(window) for window in found.tolist()] == expected


@given(st.integers(8, 40), st.lists(st.tuples(st.integers(40, 90), st.integers(40, 90)), min_size=1))
def test_crops_lie_within_the_image(crop, shapes):
    draws = draw(0, 0, 0, len(shapes))
    y, x, height, width = windows(TrainView(crop), ImageFormat(40, "aspect", 95), draws, np.array(shapes)).T
    assert set(height) == set(width) == {crop}
    assert min(y.min(), x.min()) >= 0
    assert (np.array(shapes) - np.column_stack([y, x]) >= crop).all()


@pytest.mark.parametrize(
    ("name", "window"),
    [("center", [17 + 7, 3 + 7, 49, 49]), ("ten-crop", [17, 3, 64, 64]), ("full-resize", [0, 0, 99, 71])],
)
def test_evaluation_windows_round_down_as_squares_are_cut(name, window):
    found = windows(EvalView(name, 49), ImageFormat(64, "aspect", 95), None, np.array([(99, 71)]))
    assert found.tolist() == [window]
    assert five_corners(15) == ((0, 0), (0, 15), (15, 0), (15, 15), (7, 7))


def test_scaled_shapes_round_the_longer_side():
    assert scaled_shapes(np.array([(100, 133), (31, 20), (500, 3)]), 64).tolist() == [
        [64, 85],
        [99, 64],
        [10667, 64],
    ]
