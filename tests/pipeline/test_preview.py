"""The preview: stored images on the left, crops of them to the right, the PCA plot below."""

import numpy as np
import pytest
import webdataset
from helpers.figures import pixels_of
from helpers.folders import draw_image, encoded
from helpers.synthetic import write_dataset

from pipeline import Dataset, draw_preview
from pipeline.images.pca_plot import colors_along
from pipeline.verification.adopt import adopt


def cells(preview, side, rows):
    """The (rows, 8, side, side, 3) cells of a preview."""
    (image,) = preview.images
    canvas, step = np.asarray(image.get_array()), side + 6
    assert canvas.shape == (rows * step - 6, 8 * step - 6, 3)
    starts = [(y * step, x * step) for y in range(rows) for x in range(8)]
    found = np.array([canvas[top : top + side, left : left + side] for top, left in starts])
    return found.reshape(rows, 8, side, side, 3)


@pytest.mark.parametrize(
    ("mode", "shape"), [("square", (64, 64)), ("aspect", (64, 96)), ("original", (200, 128))]
)
def test_every_row_is_a_stored_image_and_crops_of_it(tmp_path, mode, shape):
    images = [
        np.full((*shape, 3), color, np.uint8) for color in ((200, 60, 60), (60, 90, 200), (90, 200, 90))
    ]
    data = write_dataset(tmp_path / "d", {"train": images}, 64, shards=1, mode=mode)
    for row, stored in zip(cells(draw_preview(data, images=3, noise="none"), 56, 3), images, strict=True):
        assert np.abs(row.astype(int) - stored[0, 0]).max() <= 2


def test_color_noise_shifts_whole_crops(tiny_dataset):
    plain, noisy = (draw_preview(tiny_dataset, images=2, noise=kind, seed=1) for kind in ("none", "source"))
    a, b = (cells(preview, 63, 2).astype(int) for preview in (plain, noisy))
    np.testing.assert_array_equal(a[:, 0], b[:, 0])
    difference = b[:, 1:] - a[:, 1:]
    assert np.abs(np.median(difference, axis=(2, 3))).max() > 3


def test_a_preview_of_other_tools_tars_has_the_pca_plot_below(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "train.tar")) as writer:
        for k in range(14):
            data = encoded(draw_image(k, 80, 60 + k))
            writer.write({"__key__": f"k{k}", "jpg": data, "json": {"z": 5, "label": k % 12, "a": "7"}})
    adopt(tmp_path, size=48)
    dataset = Dataset.open(tmp_path)
    preview = draw_preview(dataset, images=13)
    (image,), (_, strip, *_) = preview.images, preview.subfigs[1].axes
    np.testing.assert_array_equal(
        strip.images[0].get_array()[0], colors_along(dataset.statistics, 0, strip.images[0].get_size()[1])
    )
    assert len(pixels_of(preview)) > len(image.get_array())
    assert max(axes.get_tightbbox().y1 for axes in preview.subfigs[1].axes) <= image.oy
