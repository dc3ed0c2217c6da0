"""Figures as their PNGs show them."""

import io

import numpy as np
from PIL import Image

from pipeline.images.figure import figure_bytes


def pixels_of(figure):
    """A figure's PNG as uint8 (H, W, 3)."""
    with Image.open(io.BytesIO(figure_bytes(figure, "png"))) as image:
        return np.asarray(image.convert("RGB"))
