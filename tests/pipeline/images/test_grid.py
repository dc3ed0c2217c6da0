import numpy as np
import pytest
from helpers.folders import draw_image
from PIL import Image

from pipeline.errors import RunError
from pipeline.images.grid import grid, save_png, stacked, titled


@pytest.mark.parametrize(
    ("count", "columns", "gap", "margin", "shape"),
    [
        (1, 1, 5, 0, (4, 6)),
        (6, 3, 0, 0, (8, 18)),
        (6, 3, 2, 0, (10, 22)),
        (5, 3, 2, 3, (16, 28)),
        (2, 8, 1, 0, (4, 13)),  # no more columns than images
    ],
)
def test_grid(count, columns, gap, margin, shape):
    images = [draw_image(k, 4, 6) for k in range(count)]
    canvas = grid(images, columns, gap, margin)
    assert canvas.shape == (*shape, 3)
    covered = np.zeros(shape, bool)
    for k, pixels in enumerate(images):
        row, column = divmod(k, min(columns, count))
        top, left = margin + row * (4 + gap), margin + column * (6 + gap)
        assert np.array_equal(canvas[top : top + 4, left : left + 6], pixels)
        covered[top : top + 4, left : left + 6] = True
    assert (canvas[~covered] == 255).all()


def test_stacked_images_stand_in_the_middle():
    wide, narrow = draw_image(0, 5, 20), draw_image(1, 7, 9)
    canvas = stacked([wide, narrow], gap=3)
    assert canvas.shape == (15, 20, 3)
    assert np.array_equal(canvas[:5], wide)
    assert np.array_equal(canvas[8:, 5:14], narrow)
    assert (canvas[5:8] == 255).all()
    assert (canvas[8:, :5] == 255).all()
    assert (canvas[8:, 14:] == 255).all()


def test_a_title_stands_above_the_image():
    pixels = draw_image(0, 40, 300)
    canvas = np.asarray(titled(pixels, ["one", "two"], size=20))
    above = 2 * 29 + 20
    assert canvas.shape == (above + 40, 300, 3)
    assert np.array_equal(canvas[above:], pixels)
    assert (canvas[:10] == 255).all()
    for top in (10, 39):  # ink in each line's band
        assert (canvas[top : top + 29] < 128).any()


def test_a_long_title_widens_the_canvas_and_the_image_stays_in_the_middle():
    pixels = draw_image(0, 10, 10)
    canvas = np.asarray(titled(pixels, ["a title that is much wider than ten pixels"], size=12))
    left = (canvas.shape[1] - 10) // 2
    assert canvas.shape[1] > 100
    assert np.array_equal(canvas[29:39, left : left + 10], pixels)
    ink = (canvas[:29] < 128).any(axis=(0, 2))
    assert ink.any()
    assert not ink[:6].any()
    assert not ink[-6:].any()


def test_save_png(tmp_path):
    pixels = draw_image(0, 9, 7)
    save_png(Image.fromarray(pixels), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(RunError, match="cannot write"):
        save_png(Image.fromarray(pixels), tmp_path / "nowhere" / "a.png")
