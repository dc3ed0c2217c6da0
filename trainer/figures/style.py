"""What all figures share: Okabe and Ito's colors, letters for any class name, and writing PNG or SVG."""

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

# Okabe and Ito's palette: told apart with any kind of color vision. Yellow is left out on white.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
INK, GRAY = "#282828", "#767676"

DPI = 100
_LETTERS_PER_INCH = 10  # of titles
SUFFIXES = (".png", ".svg")
_FONT = "DejaVu Sans"
_NO_GLYPH = "□"
# Matplotlib's own: mathematical symbols, and a font of placeholders that would draw every letter as a box.
_NOT_FOR_TEXT = ("Last Resort", "STIX", "cm", "DejaVu Math", "DejaVu Sans Display", "DejaVu Serif Display")

STYLE: Any = {
    "font.family": [_FONT],
    "font.size": 11,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,  # a class may be called $
    "axes.edgecolor": GRAY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "alexnet",  # equal figures, equal bytes
    "image.interpolation": "none",
}

styled = matplotlib.rc_context(STYLE)
"""Decorator of functions that make or write a figure, so that `STYLE` is in force within."""


@styled
def new_figure(width: float, height: float, *, title: str = "") -> Figure:
    """A white figure of `width` × `height` inches whose parts arrange themselves, with a title."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    if title:
        # Matplotlib's own wrapping takes $ for mathematics.
        lines = textwrap.wrap(drawable(title), round(_LETTERS_PER_INCH * width))
        figure.suptitle("\n".join(lines), fontfamily=fonts_for(title), fontsize=13)
    return figure


def check_figure_file(path: Path) -> None:
    """Refuse a file to draw to before the work of drawing.

    Raises:
        UsageError: another suffix than .png or .svg.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: figures are written as {' or '.join(SUFFIXES)}; name such a file")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically, as its suffix says.

    Raises:
        UsageError: another suffix than .png or .svg.
        RunError: the folder cannot be written.
    """
    check_figure_file(path)
    write_bytes(path, figure_bytes(figure, path.suffix.lower().removeprefix(".")))


@styled
def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a "png" or "svg" file's bytes; equal figures give equal bytes."""
    buffer = io.BytesIO()
    if kind == "svg":
        figure.savefig(buffer, format=kind, metadata={"Date": None})
    else:
        figure.savefig(buffer, format=kind, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return buffer.getvalue()


def show_pixels(axes: Axes, pixels: NDArray[np.uint8]) -> None:
    """Show uint8 (h, w, 3) with square pixels and no ticks."""
    axes.imshow(pixels, aspect="equal")
    axes.set_axis_off()


def shortened(text: str, limit: int) -> str:
    """The text, cut with an ellipsis where it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def drawable(text: str) -> str:
    """The text in one line, with □ for characters that no installed font can draw."""
    line = " ".join(text.split())
    return "".join(letter if letter == " " or _font_of(letter) else _NO_GLYPH for letter in line)


def fonts_for(*texts: str) -> list[str]:
    """Font families that draw the texts together: the default, then those that its gaps need."""
    letters = sorted(set("".join(texts)) - set(_NO_GLYPH))
    return list(dict.fromkeys([_FONT, *filter(None, map(_font_of, letters))]))


def label_ticks(axes: Axes, names: Sequence[str], *, x: bool = False, **style: Any) -> None:
    """Put class names on an axis, from 0 on."""
    places, texts = range(len(names)), [drawable(name) for name in names]
    (axes.set_xticks if x else axes.set_yticks)(places, texts, fontfamily=fonts_for(*names), **style)


@lru_cache(maxsize=20_000)
def _font_of(letter: str) -> str | None:
    """The family of the first font that has a glyph for a character."""
    return next((family for family, path in _families() if ord(letter) in _glyphs(path)), None)


@cache
def _families() -> list[tuple[str, str]]:
    """(family, path) of upright fonts that can be drawn from, the default first."""
    fonts = {
        font.name: font.fname
        for font in reversed(fontManager.ttflist)
        if font.style == "normal" and font.weight in (400, "normal", "regular", "book")
    }
    names: Iterable[str] = (name for name in sorted(fonts) if not name.startswith(_NOT_FOR_TEXT))
    return [(name, fonts[name]) for name in dict.fromkeys([_FONT, *names])]


@cache
def _glyphs(path: str) -> frozenset[int]:
    font = FT2Font(path)
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
