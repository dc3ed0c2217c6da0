"""Figures of kernels, feature maps and saliency, checked by their pixels and arrays."""

import numpy as np
import pytest
import torch
from helpers.figures import pixels_of
from torch import nn

from pipeline import UsageError
from pipeline.images.figure import figure_bytes
from trainer.figures.filters import draw_kernels, draw_maps, draw_saliency, saliency
from trainer.inference.features import captured
from trainer.inference.preprocess import as_batch
from trainer.models.classifier import Classifier


def kernels_of(figure):
    """The drawn kernels, one pixel per weight, by block; checks that a weight is 6 × 6 pixels."""
    blocks = []
    for image in figure.images:
        drawn = np.asarray(image.get_array())
        cells = [drawn[:, left : left + 66] for left in range(0, drawn.shape[1], 72)]
        kernels = np.array([cell[::6, ::6] for cell in cells])
        assert kernels.shape[1:] == (11, 11, 3)
        np.testing.assert_array_equal(kernels.repeat(6, axis=1).repeat(6, axis=2), cells)
        blocks.append(kernels)
    return blocks


def paint(classifier, *weights):
    """Set the four kernels of the first layer: each all of one value, a number or one by channel."""
    with torch.no_grad():
        for kernel, value in zip(classifier.model.conv1.weight, weights, strict=True):
            kernel[:] = torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1)


@pytest.mark.parametrize("towers", [1, 2])
def test_kernels_are_drawn_by_tower_on_one_gray_centered_scale(tiny_classifier, towers):
    if towers == 1:
        tiny_classifier.model.conv2 = nn.Conv2d(4, 14, 5, padding=2)
    paint(tiny_classifier, 0, [1, 0, 0], [0, 0, -1], 0.5)
    figure = draw_kernels(tiny_classifier, "tiny")
    blocks = kernels_of(figure)
    assert len(blocks) == towers
    colors = [kernel[3, 7].tolist() for block in blocks for kernel in block]
    assert colors == [[127] * 3, [255, 127, 127], [127, 127, 0], [191] * 3]
    texts = "\n".join(text.get_text() for text in figure.texts)
    assert ("Tower 2: kernels 3–4" in texts) == (towers == 2)


def test_kernels_of_zero_can_be_drawn(tiny_classifier):
    paint(tiny_classifier, 0, 0, 0, 0)
    assert (pixels_of(draw_kernels(tiny_classifier, "zero")) == 127).all(axis=2).sum() >= 4 * 66**2


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
        values = tiles[np.isfinite(tiles)].reshape(len(maps[0]), -1)
        np.testing.assert_array_equal(values, np.hstack(maps))


def test_all_convolutions_are_drawn_where_none_is_named(tiny_classifier, image):
    assert len(images_of(draw_maps(tiny_classifier.eval(), image, [], "tiny"))) == 1 + 5


@pytest.mark.parametrize("layer", ["conv9", "fc6"])
def test_layers_without_maps_are_refused(tiny_classifier, image, layer):
    with pytest.raises(UsageError, match=f"no layer with maps is named '{layer}'; there are conv1, bn1"):
        draw_maps(tiny_classifier.eval(), image, [layer], "tiny")


class TwoPixels(nn.Module):
    """A network whose logit k is (k + 1) times a sum of two pixels, one of them in two channels."""

    def forward(self, x):
        total = 3 * x[:, 0, 5, 7] - 4 * x[:, 1, 5, 7] - 2 * x[:, 2, 9, 1]
        return total[:, None] * torch.arange(1, 11)


def test_saliency_is_the_gradient_in_gray_levels(tiny_classifier, image):
    classifier = Classifier(tiny_classifier.spec)
    classifier.model = TwoPixels()
    classifier.std.fill_(2.0)
    found = saliency(classifier.eval(), image, 4)
    expected = np.zeros((64, 64), np.float32)
    expected[5, 7], expected[9, 1] = 5 * 4 / 2, 5 * 2 / 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)


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
