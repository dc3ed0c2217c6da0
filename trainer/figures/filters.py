"""Figures of a network's inside: first-layer kernels, feature maps and saliency.

Shapes: S side of the crop, C channels, h × w size of a kernel or map.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from pipeline.arguments import COUNT, checked
from pipeline.errors import UsageError
from pipeline.images.figure import figure_of_pixels, grid, new_figure, shortened, show_pixels, styled
from trainer.inference.features import captured, map_layers
from trainer.inference.preprocess import Crops, as_batch
from trainer.models.alexnet import first_kernels
from trainer.models.classifier import Classifier
from trainer.precision import PrecisionName, computing

_COLUMNS = 16
_MAGNIFY = 6  # pixels of the PNG per weight
# The strongest 1 % of the gradients saturates; otherwise single pixels would leave the rest black.
_SATURATED = 0.99
_SHARE_OF_IMAGE = 0.45  # contrast of the gray image below the saliency


@styled
def draw_kernels(classifier: Classifier, name: str) -> Figure:
    """Draw the first layer's kernels in rows of 16, as the paper's figure 3 does.

    All kernels share one scale on which zero is gray, so that weak kernels look weak; the strongest 0.5 % of
    the weights saturate. If the second layer is split into two towers, the kernels of the first tower are
    drawn above those of the second. One weight is 6 × 6 pixels of the PNG.

    Args:
        classifier: The network.
        name: Name of the run, for the title.
    """
    weights = first_kernels(classifier.model).permute(0, 2, 3, 1).float().cpu().numpy()  # (C1, h, w, 3)
    largest = max(float(np.quantile(np.abs(weights), 0.995)), 1e-12)
    pixels = np.clip(127.5 + 127.5 * weights / largest, 0, 255).astype(np.uint8)
    count, height, width, _ = weights.shape
    towers = _towers(classifier.model)
    half = count // towers
    title = f"{name}: {count} kernels of the first layer, {height} × {width} × 3"
    captions = [f"Tower {t + 1}: kernels {t * half + 1}–{(t + 1) * half}" for t in range(towers)]
    captions[0] = f"{title}\n{captions[0]}" if towers > 1 else title
    parts = np.split(pixels.repeat(_MAGNIFY, axis=1).repeat(_MAGNIFY, axis=2), towers)
    grids = [grid(part, _COLUMNS, _MAGNIFY) for part in parts]
    return figure_of_pixels(list(zip(captions, grids, strict=True)))


def _towers(model: nn.Module) -> int:
    """Return the number of groups of the second convolution; each sees only the kernels of one tower."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[1].groups


@checked(most=COUNT)
@styled
def draw_maps(
    classifier: Classifier,
    image: Crops,
    layers: Sequence[str],
    name: str,
    most: int = 32,
    precision: PrecisionName = "float32",
) -> Figure:
    """Draw the feature maps of layers for an image, bright where the activation is high.

    The maps of a layer share one scale, from their lowest to their highest activation.

    Args:
        classifier: Network in evaluation mode.
        image: uint8 (S, S, 3) RGB.
        layers: Names of layers with feature maps, such as "conv1"; if empty, all convolutions.
        name: Name of the run and the image, for the title.
        most: Maximum number of channels drawn per layer, from the first on.
        precision: Precision of the forward pass.

    Raises:
        UsageError: a layer does not exist or has no feature maps.
    """
    known = map_layers(classifier)
    chosen = list(layers) or [layer for layer in known if _is_convolution(classifier.model, layer)]
    for layer in chosen:
        if layer not in known:
            raise UsageError(f"no layer with maps is named {layer!r}; there are {', '.join(known)}")
    pixels = as_batch([image]).to(classifier.mean.device)
    with (
        captured(classifier.model, chosen) as outputs,
        torch.inference_mode(),
        computing(precision, pixels.device),
    ):
        classifier.classify(pixels)
    columns = min(_COLUMNS, most)
    rows = [math.ceil(min(outputs[layer].shape[1], most) / columns) for layer in chosen]
    figure = new_figure(11, 0.6 + sum(0.58 * count + 0.32 for count in rows), f"{name}: feature maps")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 5.2))[0]
    axes = left.subplots()
    show_pixels(axes, image, f"{image.shape[1]} × {image.shape[0]} px", fontsize=10)
    axes.set_anchor("N")
    blocks = right.subplots(len(chosen), 1, squeeze=False, height_ratios=rows)[:, 0]
    for block, layer in zip(blocks, chosen, strict=True):
        maps = outputs[layer][0].float().cpu().numpy()
        shown = maps[:most]
        _, height, width = maps.shape
        tiles = grid(shown, columns, max(1, round(width / 14)), np.nan)  # gaps of NaN are left blank
        number = f"{len(shown)} of {len(maps)}" if len(shown) < len(maps) else f"{len(maps)}"
        text = f"{layer}: {number} maps, {height} × {width}"
        limits = {"vmin": shown.min(), "vmax": max(shown.max(), 1e-12)}
        show_pixels(block, tiles, text, fontsize=10, cmap="viridis", **limits)
    return figure


def _is_convolution(model: nn.Module, layer: str) -> bool:
    return isinstance(model.get_submodule(layer), nn.Conv2d)


def saliency(
    classifier: Classifier, image: Crops, label: int, precision: PrecisionName = "float32"
) -> NDArray[np.float32]:
    """Compute the saliency of each pixel: |∂logit/∂pixel| of a class, maximum over the three channels.

    Simonyan, Vedaldi and Zisserman, Deep Inside Convolutional Networks (2013), section 3.

    Args:
        classifier: Network in evaluation mode.
        image: uint8 (S, S, 3) RGB.
        label: Class number of the logit.
        precision: Precision of the forward and backward pass.

    Returns:
        float32 (S, S), logit change per gray level.
    """
    pixels = as_batch([image]).to(classifier.mean.device).requires_grad_()
    with computing(precision, pixels.device):
        logit = classifier.classify(pixels)[0, label]
        (gradient,) = torch.autograd.grad(logit, pixels)
    found: NDArray[np.float32] = gradient[0].abs().amax(dim=0).cpu().numpy()
    return found


@styled
def draw_saliency(strength: NDArray[np.float32], image: Crops, name: str, class_name: str) -> Figure:
    """Draw an image, its saliency, and the saliency over the image.

    Args:
        strength: float32 (S, S), result of `saliency`.
        image: uint8 (S, S, 3) RGB.
        name: Name of the run and the image, for the title.
        class_name: Name of the class whose logit was differentiated.
    """
    top = max(float(np.quantile(strength, _SATURATED)), 1e-30)
    scaled = np.clip(strength / top, 0, 1)
    figure = new_figure(10, 3.7, f"{name}: saliency of “{shortened(class_name, 40)}”")
    left, middle, right = figure.subplots(1, 3)
    show_pixels(left, image, "image")
    heat = show_pixels(middle, scaled, "|gradient| of the class's logit", cmap="inferno", vmin=0, vmax=1)
    gray = image.astype(np.float32).mean(axis=2, keepdims=True)
    faint = np.repeat(255 - _SHARE_OF_IMAGE * (255 - gray), 3, axis=2).astype(np.uint8)
    show_pixels(right, faint, "over the image")
    right.imshow(scaled, cmap="inferno", vmin=0, vmax=1, alpha=np.sqrt(scaled))
    bar = figure.colorbar(heat, ax=[left, middle, right], shrink=0.8, pad=0.01)
    bar.set_ticks([0, 1], labels=["0", "strongest 1 %"])
    return figure
