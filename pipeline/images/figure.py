"""Figures of both packages: style, fonts for names in any script, grids of images, and PNG and SVG files."""

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.image import AxesImage
from matplotlib.text import Text
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.storage.atomic import write_bytes
from pipeline.text import visible

_P = ParamSpec("_P")

# The palette of Okabe and Ito, distinguishable with any kind of color vision; without yellow, which is too
# light on white.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
INK, GRAY = "#282828", "#767676"

DPI = 100
SUFFIXES = (".png", ".svg")
"""Suffixes of figure files."""
_FONT = "DejaVu Sans"
_REGULAR = (400, "normal", "regular", "book")
# Fonts of Matplotlib that are not for text: mathematical symbols, and "Last Resort", which has a box as its
# glyph for every character.
_NOT_FOR_TEXT = ("Last Resort", "STIX", "cm", "DejaVu Math", "DejaVu Sans Display", "DejaVu Serif Display")
_LETTERS_PER_INCH = 11  # of a title; longer lines are wrapped
_LINE = 0.19  # height of a line of text in inches
_MARGIN, _NARROWEST = 12, 700  # pixels
_WIDEST = 11  # inches

STYLE: Any = {
    "font.family": [_FONT],
    "font.size": 11,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,  # class names may contain $
    "figure.titlesize": 12,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.edgecolor": GRAY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "svg.fonttype": "path",
    "svg.hashsalt": "alexnet",  # fixed ids: equal figures give equal bytes
    "image.interpolation": "none",
}


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Decorate a function that makes a figure: apply `STYLE`, and choose fonts that have its letters."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            for text in figure.findobj(Text):
                others = {_font_of(letter) for letter in text.get_text()} - {_FONT}
                text.set_fontfamily([_FONT, *sorted(others)])
            return figure

    return drawn


def new_figure(width: float, height: float, title: str = "", dpi: float = DPI) -> Figure:
    """Create an empty white figure with constrained layout.

    Args:
        width: Width in inches.
        height: Height in inches.
        title: Title, wrapped to the width; none by default.
        dpi: Pixels per inch of a PNG.
    """
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    if title:
        figure.suptitle(wrapped(title, width))
    return figure


def figure_of_pixels(blocks: Sequence[tuple[str, NDArray[np.uint8]]], below: float = 0) -> Figure:
    """Create a figure of images that are not resampled: a pixel of an image is a pixel of the PNG.

    Args:
        blocks: (text, image) from top to bottom; each text stands above its image, uint8 (h, w, 3) RGB.
        below: Height in inches to leave free below the images.
    """
    width = max(_NARROWEST, 2 * _MARGIN + max(pixels.shape[1] for _, pixels in blocks))
    dpi = max(DPI, width // _WIDEST)  # letters of wide figures, which are shown scaled down, are larger
    texts = [wrapped(text, width / dpi) for text, _ in blocks]
    lines = [round(_LINE * dpi * len(text.splitlines())) for text in texts]
    height = round(below * dpi) + sum(lines) + sum(len(pixels) + 2 * _MARGIN for _, pixels in blocks)
    figure = new_figure(width / dpi, height / dpi, dpi=dpi)
    above = height - _MARGIN  # pixels from the figure's bottom
    for text, high, (_, pixels) in zip(texts, lines, blocks, strict=True):
        figure.text(_MARGIN / width, above / height, text, va="top")
        above -= high + len(pixels)
        figure.figimage(pixels, _MARGIN, above)
        above -= 2 * _MARGIN
    return figure


def grid(
    images: Sequence[NDArray[Any]] | NDArray[Any], columns: int, gap: int, fill: float = 255
) -> NDArray[Any]:
    """Arrange images of one size row by row; the last row may hold fewer.

    Args:
        images: (h, w, 3) or (h, w) arrays of one type, at least one.
        columns: Images per row; no more than there are images are used.
        gap: Pixels between images.
        fill: Value between the images.

    Returns:
        (H, W, 3) or (H, W), of the images' type.
    """
    height, width, *channels = images[0].shape
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *channels)
    canvas = np.full(shape, fill, images[0].dtype)
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def show_pixels(
    axes: Axes, pixels: NDArray[Any], title: str, *, fontsize: float | None = None, **scale: Any
) -> AxesImage:
    """Show an image, or a plane of values as colors, with square pixels and without axes.

    Args:
        axes: Axes to draw into.
        pixels: uint8 (h, w, 3) RGB, or (h, w) values.
        title: Title; it may have several lines.
        fontsize: Font size of the title in points.
        scale: Colors of values, passed to Matplotlib: cmap, vmin, vmax.
    """
    axes.set_axis_off()
    axes.set_title(title, fontsize=fontsize)
    return axes.imshow(pixels, aspect="equal", **scale)


def check_figure_file(path: Path) -> None:
    """Check that a figure file ends in .png or .svg, before anything is drawn.

    Raises:
        UsageError: the suffix is another.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: figures are written as {' or '.join(SUFFIXES)}; name such a file")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a .png or .svg file, atomically.

    Raises:
        UsageError: the suffix is another.
        RunError: the file cannot be written.
    """
    check_figure_file(path)
    write_bytes(path, figure_bytes(figure, path.suffix.lower().removeprefix(".")))


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """Render a figure to the bytes of a "png" or "svg" file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"metadata": {"Date": None}}
    if kind == "png":
        options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is drawn
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def shortened(text: str, limit: int) -> str:
    """Return a text in one line of at most `limit` characters, ending in an ellipsis if it was longer."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def wrapped(text: str, width: float) -> str:
    """Break the lines of a text that are longer than `width` inches."""
    # `wrap=True` of Matplotlib would parse $ as mathematics.
    letters = round(_LETTERS_PER_INCH * width)
    return "\n".join(textwrap.fill(visible(line), letters) for line in text.splitlines())


@lru_cache(maxsize=20_000)
def _font_of(letter: str) -> str:
    """Return the family of the first text font that has a glyph for a character; the default if none has."""
    fonts = sorted(fontManager.ttflist, key=lambda font: (font.name != _FONT, font.name))
    upright = (font for font in fonts if font.style == "normal" and font.weight in _REGULAR)
    text = (font for font in upright if not font.name.startswith(_NOT_FOR_TEXT))
    return next((font.name for font in text if ord(letter) in _glyphs(font.fname)), _FONT)


@cache
def _glyphs(path: str) -> frozenset[int]:
    """Return the code points that a font file has glyphs for; none for bitmap fonts."""
    font = FT2Font(path)
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
