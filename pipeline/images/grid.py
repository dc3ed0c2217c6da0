"""Arrange small images in a grid, stack images, put captions above them, save PNGs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.storage.atomic import atomic_write

PAPER = (255, 255, 255)
"""Background color of figures, RGB."""
INK = (40, 40, 40)
"""Color of text and lines in figures, RGB."""


def grid(images: Sequence[NDArray[np.uint8]], columns: int, gap: int, margin: int = 0) -> NDArray[np.uint8]:
    """Arrange images of one size row by row on white.

    Args:
        images: uint8 (h, w, 3) images, at least one.
        columns: images per row; no more than there are images are used.
        gap: pixels between images.
        margin: pixels around the grid.

    Returns:
        uint8 (H, W, 3); the last row may hold fewer images.
    """
    height, width = images[0].shape[:2]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    canvas = np.full(
        (rows * (height + gap) - gap + 2 * margin, columns * (width + gap) - gap + 2 * margin, 3),
        255,
        np.uint8,
    )
    for number, image in enumerate(images):
        top = margin + number // columns * (height + gap)
        left = margin + number % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def stacked(images: Sequence[NDArray[np.uint8]], gap: int) -> NDArray[np.uint8]:
    """Stack uint8 (h, w, 3) images of any size on white, each centered, with `gap` pixels between them.

    Returns:
        uint8 (H, W, 3), as wide as the widest image.
    """
    width = max(image.shape[1] for image in images)
    height = sum(image.shape[0] for image in images) + gap * (len(images) - 1)
    canvas = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for image in images:
        left = (width - image.shape[1]) // 2
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
        top += image.shape[0] + gap
    return canvas


def titled(image: NDArray[np.uint8], lines: Sequence[str], size: int = 20) -> Image.Image:
    """Draw lines of text above an image, on a canvas that is wide enough for the longest line.

    Args:
        image: uint8 (H, W, 3).
        lines: lines of text, at least one.
        size: font size in pixels.
    """
    font = ImageFont.load_default(size)
    step, margin = round(size * 1.45), size
    longest = max(round(font.getlength(line)) for line in lines)
    height, width = image.shape[:2]
    full_width = max(width, longest + 2 * margin)
    canvas = Image.new("RGB", (full_width, height + step * len(lines) + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((margin, margin // 2 + number * step), line, INK, font)
    canvas.paste(Image.fromarray(image), ((full_width - width) // 2, step * len(lines) + margin))
    return canvas


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image to `path` as PNG, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    with atomic_write(path) as file:
        image.save(file, format="PNG", optimize=True)
