"""Small images put together into one, with captions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.storage.atomic import atomic_write

PAPER = (255, 255, 255)
INK = (40, 40, 40)


def grid(images: Sequence[NDArray[np.uint8]], columns: int, gap: int, margin: int = 0) -> NDArray[np.uint8]:
    """Lay equally large uint8 (h, w, 3) images out row by row on white.

    Returns:
        uint8 (H, W, 3); the last row may be short.
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
    """Put uint8 (h, w, 3) images of any size under each other on white, in the middle."""
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
    """Put lines of text above an image; the canvas widens where a line is longer."""
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
    """Write a PNG atomically.

    Raises:
        RunError: the folder cannot be written.
    """
    with atomic_write(path) as file:
        image.save(file, format="PNG", optimize=True)
