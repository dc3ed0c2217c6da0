"""Grids and pixels, texts, colors and files of all figures."""

import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from helpers.figures import pixels_of
from helpers.folders import draw_image
from PIL import Image

from pipeline import RunError, UsageError
from pipeline.images import figure as module
from pipeline.images.figure import (
    COLORS,
    check_figure_file,
    figure_bytes,
    figure_of_pixels,
    grid,
    new_figure,
    save_figure,
    shortened,
    styled,
)


@styled
def figure(text="a title"):
    made = new_figure(8, 2, text)
    axes = made.subplots()
    axes.plot([0, 1, 2])
    axes.set_yticks([0, 1], [shortened(text, 40), "plain"])
    return made


@pytest.mark.parametrize(
    ("count", "columns", "gap", "shape"),
    [
        (1, 1, 5, (4, 6)),
        (6, 3, 0, (8, 18)),
        (5, 3, 2, (10, 22)),
        (2, 8, 1, (4, 13)),  # no more columns than images
    ],
)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_grid_holds_the_images_row_by_row(count, columns, gap, shape, channels):
    images = np.random.default_rng(0).random((count, 4, 6, *channels))
    canvas = grid(images, columns, gap, fill=np.nan)
    assert canvas.shape == (*shape, *channels)
    for k, image in enumerate(images):
        top, left = k // min(columns, count) * (4 + gap), k % min(columns, count) * (6 + gap)
        np.testing.assert_array_equal(canvas[top : top + 4, left : left + 6], image)
    assert np.isfinite(canvas).sum() == images.size


@pytest.mark.parametrize("width", [9, 300, 1500])
def test_pixels_are_drawn_as_they_are_below_their_texts(width):
    first, second = draw_image(0, 50, width), draw_image(1, 40, width - 2)
    made = figure_of_pixels([("a long line, " * 20, first), ("one\ntwo", second)], below=0.5)
    shown = pixels_of(made)
    assert shown.shape[1] == max(700, width + 24)
    rows = np.flatnonzero((shown != 255).any(axis=(1, 2)))
    bottom = len(shown) - round(0.5 * made.dpi) - 12
    assert rows[-1] == bottom - 1
    np.testing.assert_array_equal(shown[bottom - 40 : bottom, 12 : width + 10], second)
    (top,) = [k for k in rows if np.array_equal(shown[k : k + 50, 12 : width + 12], first)]
    ink = (shown < 128).any(axis=2)
    for above, below in ((0, top), (top + 50, bottom - 40)):
        assert ink[above + 6 : below].any()
        assert not ink[below - 1].any()
        assert not ink[above:below, -8:].any()


def test_png_and_svg_by_suffix(tmp_path):
    save_figure(figure(), tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as image:
        assert (image.format, image.size) == ("PNG", (800, 200))
    save_figure(figure(), tmp_path / "f.SVG")
    assert ElementTree.parse(tmp_path / "f.SVG").getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_figures_are_equal_bytes_without_a_date(kind):
    one, two = figure_bytes(figure(), kind), figure_bytes(figure(), kind)
    assert one == two
    assert b"20" + b"26-" not in one


@pytest.mark.parametrize("name", ["f.jpg", "f", "f.pdf"])
def test_other_suffixes_are_refused(tmp_path, name):
    for refuse in (check_figure_file, lambda path: save_figure(figure(), path)):
        with pytest.raises(UsageError, match=r"written as \.png or \.svg"):
            refuse(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_one_error(tmp_path):
    with pytest.raises(RunError, match="cannot write"):
        save_figure(figure(), tmp_path / "no" / "f.png")


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("$x_1$ & \\frac{1}{2} ^ {", "$x_1$ & \\frac{1}{2} ^ {"),
        ("$\\frac{$ _ ^ <b>&amp;</b> Größe Ελληνικά", "$\\frac{$ _ ^ <b>&amp;</b> Größe Ελληνικά"),
        (
            "日本語 한국어 العربية हिन्दी 🐱\u200d\x07\U0010fffd",
            "日本語 한국어 العربية हिन्दी 🐱\u200d\\x07\\U0010fffd",
        ),
        ("two\nlines \ud800", "two lines \\ud800"),
    ],
)
def test_any_name_is_drawn_as_it_is_in_one_line_without_a_warning(text, drawn, caplog):
    made = figure(text)
    assert pixels_of(made).shape == (200, 800, 3)
    assert ElementTree.fromstring(figure_bytes(made, "svg")).tag.endswith("svg")
    assert [label.get_text() for label in made.axes[0].get_yticklabels()] == [drawn, "plain"]
    assert not caplog.records


def test_letters_that_the_default_font_lacks_come_from_a_font_that_has_them(monkeypatch):
    glyphs = {"DejaVuSans.ttf": frozenset(map(ord, "abc")), "DejaVuSerif.ttf": frozenset(map(ord, "a猫"))}
    monkeypatch.setattr(module, "_glyphs", lambda path: glyphs.get(path.rpartition("/")[2], frozenset()))
    monkeypatch.setattr(module, "_font_of", module._font_of.__wrapped__)
    title = figure("a 猫 ☃")._suptitle
    assert title.get_fontfamily() == ["DejaVu Sans", "DejaVu Serif"]
    assert figure("abc")._suptitle.get_fontfamily() == ["DejaVu Sans"]


def test_a_long_title_is_broken_into_lines():
    made = new_figure(4, 2, "a run with a long name on a dataset with a long name, val: predictions")
    figure_bytes(made, "png")
    box = made._suptitle.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= 400


def test_the_users_own_style_changes_nothing():
    plain = figure_bytes(figure("$a$"), "png")
    with matplotlib.rc_context({"text.parse_math": True, "font.size": 30, "svg.fonttype": "none"}):
        assert figure_bytes(figure("$a$"), "png") == plain
    assert matplotlib.rcParams["text.parse_math"]


def test_cutting_a_long_name():
    assert [shortened(text, 6) for text in ("abcdef", "abcdefg", "abcd efg")] == ["abcdef", "abcde…", "abcd…"]


def test_colors_differ_for_those_who_see_no_red_or_no_green():
    """Viénot, Brettel and Mollon's (1999) simulation on linear RGB; distances in CIE Lab."""
    blind = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }
    colors = np.array([matplotlib.colors.to_rgb(color) for color in COLORS])
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    for matrix in (np.eye(3), *map(np.array, blind.values())):
        lab = to_lab(np.clip(linear @ matrix.T, 0, 1))
        distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)
        assert distances[np.triu_indices(len(lab), 1)].min() > 10


def to_lab(linear):
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
