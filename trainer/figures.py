"""The paper's figures, drawn from a trained net."""

import numpy as np
from PIL import Image

from pipeline.pictures import grid, titled
from trainer.classifier import Classifier
from trainer.models import first_kernels

_COLUMNS = 16
_MAGNIFY = 6


def kernels(classifier: Classifier, name: str) -> Image.Image:
    """Draw the first layer's kernels in rows of 16, as the paper's figure 3 does.

    All kernels share one scale, symmetric about grey, so that weak ones look weak; the strongest 0.5 %
    of weights saturate. With 96 kernels the upper three rows are the first tower's.

    Args:
        classifier: a trained net.
        name: for the title.

    Returns:
        An RGB picture.
    """
    weights = first_kernels(classifier.net).permute(0, 2, 3, 1).float().cpu().numpy()  # (C1, h, w, 3)
    largest = max(float(np.quantile(np.abs(weights), 0.995)), 1e-12)
    pixels = np.clip(127.5 + 127.5 * weights / largest, 0, 255).astype(np.uint8)
    pictures = [np.kron(kernel, np.ones((_MAGNIFY, _MAGNIFY, 1), np.uint8)) for kernel in pixels]
    sheet = grid(pictures, _COLUMNS, gap=_MAGNIFY, margin=2 * _MAGNIFY)
    side = weights.shape[1]
    return titled(sheet, [f"{name}: {len(pixels)} kernels of the first layer, {side} x {side} x 3"])
