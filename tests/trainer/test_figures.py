"""Figure 3 of a net: the first layer's kernels."""

import numpy as np
import torch

from trainer.figures import kernels


def test_kernels_are_drawn_magnified_on_one_grey_centred_scale(tiny_classifier):
    weights = tiny_classifier.net.conv1.weight
    with torch.no_grad():
        weights.zero_()
        weights[1, 0] = 1.0  # red up
        weights[2, 2] = -1.0  # blue down
    picture = np.asarray(kernels(tiny_classifier, "tiny").convert("RGB"))
    cell = 11 * 6  # 11 px, six times larger
    found = {
        colour: (picture == colour).all(axis=2) for colour in [(127,) * 3, (255, 127, 127), (127, 127, 0)]
    }
    grey, red, blueless = found.values()
    assert grey.sum() >= (len(weights) - 2) * cell**2
    for area in (red, blueless):
        assert area.sum() == cell**2
        rows, columns = area.any(axis=1).nonzero()[0], area.any(axis=0).nonzero()[0]
        assert len(rows) == len(columns) == cell
    assert red.any(axis=0).argmax() < blueless.any(axis=0).argmax()


def test_weak_kernels_look_weak_beside_strong_ones(tiny_classifier):
    weights = tiny_classifier.net.conv1.weight
    with torch.no_grad():
        weights.zero_()
        weights[0] = 1.0
        weights[1] = 0.5
    values = set(np.asarray(kernels(tiny_classifier, "tiny").convert("L")).ravel().tolist())
    assert {255, 191, 127} <= values


def test_an_untrained_or_zero_net_can_be_drawn(tiny_classifier):
    with torch.no_grad():
        tiny_classifier.net.conv1.weight.zero_()
    assert kernels(tiny_classifier, "zero").mode == "RGB"
