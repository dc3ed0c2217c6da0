"""Fonts, files and colors of all figures."""

import io
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from pipeline import RunError, UsageError
from trainer.figures.style import (
    COLORS,
    check_figure_file,
    drawable,
    figure_bytes,
    fonts_for,
    label_ticks,
    new_figure,
    save_figure,
    shortened,
    styled,
)


@styled
def figure(title="a title"):
    made = new_figure(8, 2, title=title)
    axes = made.subplots()
    axes.plot([0, 1, 2])
    label_ticks(axes, [title, "plain"])
    return made


def test_png_and_svg_by_suffix(tmp_path):
    save_figure(figure(), tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as image:
        assert (image.format, image.size) == ("PNG", (800, 200))
    save_figure(figure(), tmp_path / "f.SVG")
    root = ElementTree.parse(tmp_path / "f.SVG").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_figures_are_equal_bytes_without_a_date(kind):
    one, two = figure_bytes(figure(), kind), figure_bytes(figure(), kind)
    assert one == two
    assert b"20" + b"26-" not in one


@pytest.mark.parametrize("name", ["f.jpg", "f", "f.pdf"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"written as \.png or \.svg"):
        check_figure_file(tmp_path / name)
    with pytest.raises(UsageError, match=r"written as \.png or \.svg"):
        save_figure(figure(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_one_error_and_leaves_nothing(tmp_path):
    with pytest.raises(RunError, match="cannot write"):
        save_figure(figure(), tmp_path / "no" / "f.png")


@pytest.mark.parametrize(
    "text", ["$x_1$ & \\frac{1}{2} ^ {", "$\\frac{$ _ ^", "Größe, naïve, Ελληνικά, Русский", "<b>&amp;</b>"]
)
def test_signs_are_drawn_as_they_are(text, caplog):
    assert drawable(text) == text
    made = figure(text)
    assert figure_bytes(made, "svg")
    assert [label.get_text() for label in made.axes[0].get_yticklabels()] == [text, "plain"]
    assert not caplog.records


def test_a_long_title_is_broken_into_lines():
    made = new_figure(4, 2, title="a run with a long name on a dataset with a long name, val: predictions")
    figure_bytes(made, "png")
    box = made._suptitle.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= 400


def test_letters_that_no_font_has_become_boxes_without_a_warning():
    text = "a\U0010fffd\ue000z"  # private use: no font has them
    assert drawable(text) == "a□□z"
    assert figure_bytes(figure(text), "png")


@given(st.text(max_size=40))
def test_any_name_can_be_drawn_in_one_line(text):
    line = drawable(text)
    assert "\n" not in line
    assert len(line) <= len(text)
    assert fonts_for(text)[0] == "DejaVu Sans"


def test_any_name_can_be_written_to_a_file():
    figure_bytes(figure("日本語 한국어 العربية עברית हिन्दी 🐱 \u200d \x07 \ud800"), "png")


def test_the_users_own_style_changes_nothing():
    plain = figure_bytes(figure("$a$"), "png")
    with matplotlib.rc_context({"text.parse_math": True, "font.size": 30, "svg.fonttype": "none"}):
        assert figure_bytes(figure("$a$"), "png") == plain
    assert matplotlib.rcParams["text.parse_math"]


def test_cutting_a_long_name():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"
    assert shortened("abcd efg", 6) == "abcd…"


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


def pixels_of(made):
    """A figure's PNG as uint8 (H, W, 3)."""
    with Image.open(io.BytesIO(figure_bytes(made, "png"))) as image:
        return np.asarray(image.convert("RGB"))


def test_figures_are_white():
    assert (pixels_of(new_figure(1, 1)) == 255).all()
