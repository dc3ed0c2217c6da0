"""PCA plot of a dataset's colors: how much they vary, and along which directions in RGB space."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.images.grid import INK, PAPER
from pipeline.images.statistics import Statistics

_FONT = 28
_LINE = 40
_MARGIN = 14
_STRIP = 56
_ROW = 2 * _LINE + _STRIP
# Blue of Okabe and Ito's palette, which is safe for color-blind readers.
_BAR = (0, 114, 178)
_SHARE_OF_BARS = 0.36  # of the width
# In standard deviations. On ImageNet, two along the first direction just reach black and white.
_REACH = 2.0
_NARROWEST = 1300  # pixels


def draw_pca_plot(statistics: Statistics, width: int) -> NDArray[np.uint8]:
    """Draw the PCA plot of a dataset's pixels.

    Left: a bar for each of the three principal directions, with its standard deviation in gray levels and its
    share of the variance. Right: the colors along each direction, from the mean minus two standard deviations
    to the mean plus two, clipped to 0..255.

    Args:
        statistics: RGB statistics of the dataset.
        width: width in pixels; less than 1300 becomes 1300, so that the text fits.

    Returns:
        uint8 (H, max(width, 1300), 3).
    """
    width = max(width, _NARROWEST)
    canvas = Image.new("RGB", (width, _LINE + 3 * _ROW + _MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    middle = round(width * _SHARE_OF_BARS)
    _draw_bars(draw, statistics, _MARGIN, middle - 2 * _MARGIN)
    _draw_directions(canvas, draw, statistics, middle, width - _MARGIN)
    return np.asarray(canvas)


def colors_along(statistics: Statistics, direction: int, steps: int) -> NDArray[np.uint8]:
    """Return colors from two standard deviations below the mean to two above, along an eigenvector.

    Args:
        statistics: RGB statistics of a dataset.
        direction: 0, 1 or 2; 0 is the direction of the largest variance.
        steps: number of colors.

    Returns:
        uint8 (steps, 3), clipped to 0..255.
    """
    reach = _REACH * statistics.deviations[direction]
    offsets = np.linspace(-reach, reach, steps)[:, None]
    colors: NDArray[np.float64] = np.asarray(statistics.mean) + offsets * statistics.eigenvectors[direction]
    return np.clip(np.rint(colors), 0, 255).astype(np.uint8)


def _draw_bars(draw: ImageDraw.ImageDraw, statistics: Statistics, left: int, right: int) -> None:
    font = ImageFont.load_default(_FONT)
    draw.text((left, 0), "PCA: deviation, share of variance", INK, font)
    deviations = statistics.deviations
    total = max(sum(statistics.eigenvalues), 1e-12)
    bottom = 3 * _ROW - _MARGIN  # leaves room for the numbers below
    highest = bottom - 3 * _LINE - _MARGIN  # leaves room for title, deviation and share above
    step = (right - left) / 3
    for number, deviation in enumerate(deviations):
        center = left + (number + 0.5) * step
        top = bottom - round(highest * deviation / max(deviations[0], 1e-12))
        draw.rectangle((center - 0.27 * step, top, center + 0.27 * step, bottom), _BAR)
        share = f"{statistics.eigenvalues[number] / total:.1%}"
        for line, text in enumerate((share, f"{deviation:.1f}")):
            draw.text((center, top - _MARGIN // 2 - line * _LINE), text, INK, font, anchor="mb")
        draw.text((center, bottom + _MARGIN), str(number + 1), INK, font, anchor="mt")
    draw.line((left, bottom, right, bottom), INK, 2)


def _draw_directions(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, statistics: Statistics, left: int, right: int
) -> None:
    font = ImageFont.load_default(_FONT)
    draw.text((left, 0), "Color directions: mean ± 2 deviations", INK, font)
    for number, vector in enumerate(statistics.eigenvectors):
        top = _LINE + number * _ROW
        components = "   ".join(f"{name} {x:+.2f}" for name, x in zip("RGB", vector, strict=True))
        draw.text((left, top + _LINE // 2), f"{number + 1}:   {components}", INK, font)
        strip = colors_along(statistics, number, right - left)
        image = np.broadcast_to(strip, (_STRIP, *strip.shape))
        canvas.paste(Image.fromarray(np.ascontiguousarray(image)), (left, top + _LINE // 2 + _LINE))
