"""The colors of a dataset as a small image: how much they vary in which directions."""

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
# The blue of Okabe and Ito's palette, told apart with any color vision; only one color means something.
_BAR = (0, 114, 178)
_SHARE_OF_BARS = 0.36
# Of ImageNet, two deviations of the first direction just reach black and white.
_REACH = 2.0
_NARROWEST = 1300


def draw_pca_plot(statistics: Statistics, width: int) -> NDArray[np.uint8]:
    """Draw the scree of the three eigenvalues, and the colors along each direction.

    Left, a bar for each direction: its standard deviation in gray levels, and its share of the variance.
    Right, the colors from the mean minus two deviations to the mean plus two, clipped to 0..255.

    Args:
        statistics: of a dataset.
        width: in pixels; at least 1300 are taken, so that all the text has room.

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
    """Colors from the mean − 2 to the mean + 2 deviations along an eigenvector, uint8 (steps, 3)."""
    reach = _REACH * statistics.deviations[direction]
    offsets = np.linspace(-reach, reach, steps)[:, None]
    colors: NDArray[np.float64] = np.asarray(statistics.mean) + offsets * statistics.eigenvectors[direction]
    return np.clip(np.rint(colors), 0, 255).astype(np.uint8)


def _draw_bars(draw: ImageDraw.ImageDraw, statistics: Statistics, left: int, right: int) -> None:
    font = ImageFont.load_default(_FONT)
    draw.text((left, 0), "Scree: deviation, share of variance", INK, font)
    deviations = statistics.deviations
    total = max(sum(statistics.eigenvalues), 1e-12)
    bottom = 3 * _ROW - _MARGIN  # the numbers stand below
    highest = bottom - 3 * _LINE - _MARGIN  # title, deviation and share stand above
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
