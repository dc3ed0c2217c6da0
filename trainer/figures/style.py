"""Style shared by all figures: colors, fonts for class names in any script, and writing PNG or SVG."""

import io
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.storage.atomic import write_bytes

# The palette of Okabe and Ito, distinguishable with any kind of color vision; without yellow, which is too
# light on white.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
INK, GRAY = "#282828", "#767676"

DPI = 100
_LETTERS_PER_INCH = 10  # of a title; longer lines are wrapped
SUFFIXES = (".png", ".svg")
"""Suffixes of figure files."""
_FONT = "DejaVu Sans"
_NO_GLYPH = "□"
# Fonts of Matplotlib that are not for text: mathematical symbols, and "Last Resort", which has a box as its
# glyph for every character.
_NOT_FOR_TEXT = ("Last Resort", "STIX", "cm", "DejaVu Math", "DejaVu Sans Display", "DejaVu Serif Display")

STYLE: Any = {
    "font.family": [_FONT],
    "font.size": 11,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,  # class names may contain $
    "axes.edgecolor": GRAY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "alexnet",  # fixed ids: equal figures give equal bytes
    "image.interpolation": "none",
}

styled = matplotlib.rc_context(STYLE)
"""Decorator that applies `STYLE` within a function that makes or writes a figure."""


@styled
def new_figure(width: float, height: float, *, title: str = "") -> Figure:
    """Create an empty white figure with constrained layout.

    Args:
        width: Width in inches; a PNG has `DPI` pixels per inch.
        height: Height in inches.
        title: Title, wrapped to the width; none by default.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    if title:
        # `wrap=True` of Matplotlib would parse $ as mathematics.
        lines = textwrap.wrap(drawable(title), round(_LETTERS_PER_INCH * width))
        figure.suptitle("\n".join(lines), fontfamily=fonts_for(title), fontsize=13)
    return figure


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


@styled
def figure_bytes(figure: Figure, kind: str) -> bytes:
    """Render a figure to the bytes of a "png" or "svg" file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    if kind == "svg":
        figure.savefig(buffer, format=kind, metadata={"Date": None})
    else:
        figure.savefig(buffer, format=kind, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return buffer.getvalue()


def show_pixels(axes: Axes, pixels: NDArray[np.uint8]) -> None:
    """Show an image, uint8 (h, w, 3) RGB, with square pixels and without axes."""
    axes.imshow(pixels, aspect="equal")
    axes.set_axis_off()


def shortened(text: str, limit: int) -> str:
    """Cut a text to at most `limit` characters, ending in an ellipsis if it was longer."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def drawable(text: str) -> str:
    """Return a text in one line, with □ for characters that no installed font has."""
    line = " ".join(text.split())
    return "".join(letter if letter == " " or _font_of(letter) else _NO_GLYPH for letter in line)


def fonts_for(*texts: str) -> list[str]:
    """List the font families that draw all texts: the default font, then fonts for characters it lacks."""
    letters = sorted(set("".join(texts)) - set(_NO_GLYPH))
    return list(dict.fromkeys([_FONT, *filter(None, map(_font_of, letters))]))


def label_ticks(axes: Axes, names: Sequence[str], *, x: bool = False, **style: Any) -> None:
    """Label the ticks 0, 1, … of the y axis, or of the x axis, with class names.

    Args:
        axes: Axes to label.
        names: Class names, from tick 0 on.
        x: Whether to label the x axis instead of the y axis.
        style: Text properties, passed to Matplotlib.
    """
    ticks, texts = range(len(names)), [drawable(name) for name in names]
    (axes.set_xticks if x else axes.set_yticks)(ticks, texts, fontfamily=fonts_for(*names), **style)


@lru_cache(maxsize=20_000)
def _font_of(letter: str) -> str | None:
    """Return the family of the first font that has a glyph for a character, or None."""
    return next((family for family, path in _families() if ord(letter) in _glyphs(path)), None)


@cache
def _families() -> list[tuple[str, str]]:
    """List (family, path) of the installed upright text fonts, the default first."""
    fonts = {
        font.name: font.fname
        for font in reversed(fontManager.ttflist)
        if font.style == "normal" and font.weight in (400, "normal", "regular", "book")
    }
    names: Iterable[str] = (name for name in sorted(fonts) if not name.startswith(_NOT_FOR_TEXT))
    return [(name, fonts[name]) for name in dict.fromkeys([_FONT, *names])]


@cache
def _glyphs(path: str) -> frozenset[int]:
    """Return the code points that a font file has glyphs for; none for bitmap fonts."""
    font = FT2Font(path)
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
