"""Figures of kernels, feature maps and saliency, checked by their pixels and arrays."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline import UsageError
from trainer.figures.filters import draw_kernels, draw_maps, draw_saliency, saliency
from trainer.figures.style import figure_bytes
from trainer.inference.features import captured
from trainer.inference.preprocess import as_batch
from trainer.models.classifier import Classifier

CELL = 11 * 6  # side in pixels of a drawn 11 × 11 kernel


def pixels_of(figure):
    with Image.open(io.BytesIO(figure_bytes(figure, "png"))) as image:
        return np.asarray(image.convert("RGB"))


def position_of(image, color):
    """(top, left) of the only cell of a color."""
    found = (image == color).all(axis=2)
    rows, columns = found.any(axis=1).nonzero()[0], found.any(axis=0).nonzero()[0]
    assert found.sum() == CELL**2
    assert len(rows) == len(columns) == CELL
    return rows[0], columns[0]


def paint(classifier):
    """Set four kernels: gray and red in tower 1, yellow (negative blue) and gray in tower 2."""
    weights = classifier.model.conv1.weight
    assert len(weights) == 4
    with torch.no_grad():
        weights.zero_()
        weights[1, 0] = 1.0
        weights[2, 2] = -1.0


def test_kernels_are_drawn_magnified_on_one_gray_centered_scale(tiny_classifier):
    paint(tiny_classifier)
    image = pixels_of(draw_kernels(tiny_classifier, "tiny"))
    assert (image == 127).all(axis=2).sum() >= 2 * CELL**2
    position_of(image, (255, 127, 127))
    position_of(image, (127, 127, 0))


def test_the_second_towers_kernels_stand_below_the_first_ones(tiny_classifier):
    paint(tiny_classifier)
    image = pixels_of(draw_kernels(tiny_classifier, "tiny"))
    (upper, right), (lower, left) = position_of(image, (255, 127, 127)), position_of(image, (127, 127, 0))
    assert lower - upper >= CELL + 20  # at least 20 px for a gap and a caption
    assert right - left == CELL + 6  # second and first of their rows
    between = image[upper + CELL : lower]
    assert (between < 100).any()


def test_a_network_without_towers_has_one_block(tiny_classifier):
    tiny_classifier.model.conv2 = nn.Conv2d(4, 14, 5, padding=2)
    paint(tiny_classifier)
    image = pixels_of(draw_kernels(tiny_classifier, "tiny"))
    (one, left), (other, right) = position_of(image, (255, 127, 127)), position_of(image, (127, 127, 0))
    assert one == other
    assert right - left == CELL + 6


def test_weak_kernels_look_weak_beside_strong_ones(tiny_classifier):
    weights = tiny_classifier.model.conv1.weight
    with torch.no_grad():
        weights.zero_()
        weights[0] = 1.0
        weights[1] = 0.5
    values = set(pixels_of(draw_kernels(tiny_classifier, "tiny")).ravel().tolist())
    assert {255, 191, 127} <= values


def test_kernels_of_zero_can_be_drawn(tiny_classifier):
    with torch.no_grad():
        tiny_classifier.model.conv1.weight.zero_()
    assert (pixels_of(draw_kernels(tiny_classifier, "zero")) == 127).all(axis=2).sum() >= 4 * CELL**2


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def images_of(figure):
    """The arrays that a figure's axes show."""
    parts = [*figure.axes, *(axes for part in figure.subfigs for axes in part.axes)]
    return [image.get_array() for axes in dict.fromkeys(parts) for image in axes.get_images()]


def test_maps_are_the_layers_outputs_in_tiles(tiny_classifier, image):
    tiny_classifier.eval()
    figure = draw_maps(tiny_classifier, image, ["conv1", "pool2"], "tiny, an image", most=3)
    with captured(tiny_classifier.model, ["conv1", "pool2"]) as outputs, torch.inference_mode():
        tiny_classifier.classify(as_batch([image]))
    shown, conv1, pool2 = images_of(figure)
    np.testing.assert_array_equal(shown, image)
    for tiles, name in ((conv1, "conv1"), (pool2, "pool2")):
        maps = outputs[name][0, :3].numpy()
        side = maps.shape[1]
        step = (tiles.shape[1] - side) // 2
        for number, one in enumerate(maps):
            tile = tiles[:, number * step : number * step + side]
            np.testing.assert_array_equal(tile, one)


def test_all_convolutions_are_drawn_where_none_is_named(tiny_classifier, image):
    assert len(images_of(draw_maps(tiny_classifier.eval(), image, [], "tiny"))) == 1 + 5


@pytest.mark.parametrize("layer", ["conv9", "fc6"])
def test_layers_without_maps_are_refused(tiny_classifier, image, layer):
    with pytest.raises(UsageError, match=f"no layer with maps is named '{layer}'; there are conv1, bn1"):
        draw_maps(tiny_classifier.eval(), image, [layer], "tiny")


class OneWeight(nn.Module):
    """A network whose logit k is (k + 1) · (3 · one red pixel − 2 · one blue pixel)."""

    def forward(self, x):
        return torch.stack([(k + 1) * (3 * x[:, 0, 5, 7] - 2 * x[:, 2, 9, 1]) for k in range(10)], dim=1)


def test_saliency_is_the_gradient_in_gray_levels(tiny_classifier, image):
    classifier = Classifier(tiny_classifier.spec)
    classifier.model = OneWeight()
    classifier.std.fill_(2.0)
    found = saliency(classifier.eval(), image, 4)
    expected = np.zeros((64, 64), np.float32)
    expected[5, 7], expected[9, 1] = 5 * 3 / 2, 5 * 2 / 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_saliency_agrees_with_finite_differences(tiny_classifier, image):
    classifier = tiny_classifier.double().eval()
    found = saliency(classifier.float(), image, 2)
    classifier.double()
    row, column = np.unravel_index(found.argmax(), found.shape)
    pixels = as_batch([image]).double()
    slopes = []
    for channel in range(3):
        moved = [pixels.clone(), pixels.clone()]
        for pixel, step in zip(moved, (-1e-3, 1e-3), strict=True):
            pixel[0, channel, row, column] += step
        with torch.inference_mode():
            low, high = (classifier.classify(pixel)[0, 2].item() for pixel in moved)
        slopes.append(abs(high - low) / 2e-3)
    assert found.max() == pytest.approx(max(slopes), rel=1e-3)


def test_saliency_is_drawn_beside_and_over_the_image(image):
    strength = np.zeros((64, 64), np.float32)
    strength[:32] = 1.0
    shown, alone, faint, over = images_of(draw_saliency(strength, image, "tiny, an image", "$cat_1$"))[:4]
    np.testing.assert_array_equal(shown, image)
    np.testing.assert_array_equal(alone, strength)
    np.testing.assert_array_equal(over, strength)
    assert (faint[..., 0] == faint[..., 2]).all()


def test_saliency_of_nothing_can_be_drawn(image):
    assert figure_bytes(draw_saliency(np.zeros((64, 64), np.float32), image, "t", "c"), "png")
