"""The contact sheet: the stored images on the left, crops of them beside, the scree below."""

import io

import numpy as np
import pytest
import webdataset
from helpers.folders import draw_image, encoded
from helpers.synthetic import write_dataset
from PIL import Image

from pipeline import Dataset, draw_preview
from pipeline.images.pca_plot import draw_pca_plot
from pipeline.verification.adopt import adopt

GAP, MARGIN, BELOW = 6, 12, 24


def cells(sheet, plot, side, rows):
    """The (rows, 8, side, side, 3) cells of a sheet that has the scree at its bottom."""
    height = rows * (side + GAP) - GAP + 2 * MARGIN
    width = 8 * (side + GAP) - GAP + 2 * MARGIN
    top = sheet.shape[0] - plot.shape[0] - BELOW - height + MARGIN
    left = (sheet.shape[1] - width) // 2 + MARGIN
    return np.array(
        [
            [sheet[y : y + side, x : x + side] for x in range(left, left + 8 * (side + GAP), side + GAP)]
            for y in range(top, top + rows * (side + GAP), side + GAP)
        ]
    )


def without_the_pca_plot(sheet, data):
    """Check that the scree of the dataset is at the bottom, in the middle; return it."""
    plot = draw_pca_plot(data.statistics, 0)
    left = (sheet.shape[1] - plot.shape[1]) // 2
    np.testing.assert_array_equal(sheet[-plot.shape[0] :, left : left + plot.shape[1]], plot)
    return plot


@pytest.mark.parametrize(
    ("mode", "shape"), [("square", (64, 64)), ("aspect", (64, 96)), ("original", (200, 128))]
)
def test_every_row_is_a_stored_image_and_crops_of_it(tmp_path, mode, shape):
    images = [
        np.full((*shape, 3), color, np.uint8) for color in ((200, 60, 60), (60, 90, 200), (90, 200, 90))
    ]
    data = write_dataset(tmp_path / "d", {"train": images}, 64, shards=1, mode=mode)
    sheet = np.asarray(draw_preview(data, images=3, noise="none"))
    found = cells(sheet, without_the_pca_plot(sheet, data), 56, 3)
    for row, stored in zip(found, images, strict=True):
        assert np.abs(row.astype(int) - stored[0, 0]).max() <= 2


def test_color_noise_shifts_whole_crops(tiny_dataset):
    plain, noisy = (
        np.asarray(draw_preview(tiny_dataset, images=2, noise=kind, seed=1)) for kind in ("none", "source")
    )
    plot = without_the_pca_plot(noisy, tiny_dataset)
    a, b = (cells(sheet, plot, 63, 2).astype(int) for sheet in (plain, noisy))
    np.testing.assert_array_equal(a[:, 0], b[:, 0])
    difference = b[:, 1:] - a[:, 1:]
    assert np.abs(np.median(difference, axis=(2, 3))).max() > 3


def test_a_preview_of_other_tools_tars(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "train.tar")) as writer:
        for k in range(14):
            data = encoded(draw_image(k, 80, 60 + k))
            writer.write({"__key__": f"k{k}", "jpg": data, "json": {"z": 5, "label": k % 12, "a": "7"}})
    adopt(tmp_path, size=48)
    image = draw_preview(Dataset.open(tmp_path), images=13)
    with io.BytesIO() as file:
        image.save(file, "PNG")
        assert Image.open(file).size == image.size
    sheet = np.asarray(image)
    assert without_the_pca_plot(sheet, Dataset.open(tmp_path)).shape[0] < sheet.shape[0]
