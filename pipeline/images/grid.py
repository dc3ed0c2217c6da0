"""Small pictures put together into one, with captions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.storage.atomic import atomic_write

PAPER = (255, 255, 255)
INK = (40, 40, 40)


def grid(pictures: Sequence[NDArray[np.uint8]], columns: int, gap: int, margin: int = 0) -> NDArray[np.uint8]:
    """Lay equally large uint8 (h, w, 3) pictures out row by row on white.

    Returns:
        uint8 (H, W, 3); the last row may be short.
    """
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full(
        (rows * (height + gap) - gap + 2 * margin, columns * (width + gap) - gap + 2 * margin, 3),
        255,
        np.uint8,
    )
    for number, picture in enumerate(pictures):
        top = margin + number // columns * (height + gap)
        left = margin + number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def stacked(pictures: Sequence[NDArray[np.uint8]], gap: int) -> NDArray[np.uint8]:
    """Put uint8 (h, w, 3) pictures of any size under each other on white, in the middle."""
    width = max(picture.shape[1] for picture in pictures)
    height = sum(picture.shape[0] for picture in pictures) + gap * (len(pictures) - 1)
    sheet = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for picture in pictures:
        left = (width - picture.shape[1]) // 2
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        top += picture.shape[0] + gap
    return sheet


def titled(picture: NDArray[np.uint8], lines: Sequence[str], size: int = 20) -> Image.Image:
    """Put lines of text above a picture; the canvas widens where a line is longer."""
    font = ImageFont.load_default(size)
    step, margin = round(size * 1.45), size
    longest = max(round(font.getlength(line)) for line in lines)
    height, width = picture.shape[:2]
    full_width = max(width, longest + 2 * margin)
    canvas = Image.new("RGB", (full_width, height + step * len(lines) + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((margin, margin // 2 + number * step), line, INK, font)
    canvas.paste(Image.fromarray(picture), ((full_width - width) // 2, step * len(lines) + margin))
    return canvas


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically.

    Raises:
        RunError: the folder cannot be written.
    """
    with atomic_write(path) as file:
        image.save(file, format="PNG", optimize=True)
