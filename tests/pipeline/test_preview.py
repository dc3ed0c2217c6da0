"""The preview: stored images on the left, crops of them to the right, the PCA plot below."""

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


def cells(preview, plot, side, rows):
    """The (rows, 8, side, side, 3) cells of a preview with the PCA plot at its bottom."""
    height = rows * (side + GAP) - GAP + 2 * MARGIN
    width = 8 * (side + GAP) - GAP + 2 * MARGIN
    top = preview.shape[0] - plot.shape[0] - BELOW - height + MARGIN
    left = (preview.shape[1] - width) // 2 + MARGIN
    return np.array(
        [
            [preview[y : y + side, x : x + side] for x in range(left, left + 8 * (side + GAP), side + GAP)]
            for y in range(top, top + rows * (side + GAP), side + GAP)
        ]
    )


def pca_plot_of(preview, data):
    """Check that the dataset's PCA plot is at the bottom, centered; return it."""
    plot = draw_pca_plot(data.statistics, 0)
    left = (preview.shape[1] - plot.shape[1]) // 2
    np.testing.assert_array_equal(preview[-plot.shape[0] :, left : left + plot.shape[1]], plot)
    return plot


@pytest.mark.parametrize(
    ("mode", "shape"), [("square", (64, 64)), ("aspect", (64, 96)), ("original", (200, 128))]
)
def test_every_row_is_a_stored_image_and_crops_of_it(tmp_path, mode, shape):
    images = [
        np.full((*shape, 3), color, np.uint8) for color in ((200, 60, 60), (60, 90, 200), (90, 200, 90))
    ]
    data = write_dataset(tmp_path / "d", {"train": images}, 64, shards=1, mode=mode)
    preview = np.asarray(draw_preview(data, images=3, noise="none"))
    found = cells(preview, pca_plot_of(preview, data), 56, 3)
    for row, stored in zip(found, images, strict=True):
        assert np.abs(row.astype(int) - stored[0, 0]).max() <= 2


def test_color_noise_shifts_whole_crops(tiny_dataset):
    plain, noisy = (
        np.asarray(draw_preview(tiny_dataset, images=2, noise=kind, seed=1)) for kind in ("none", "source")
    )
    plot = pca_plot_of(noisy, tiny_dataset)
    a, b = (cells(preview, plot, 63, 2).astype(int) for preview in (plain, noisy))
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
    preview = np.asarray(image)
    assert pca_plot_of(preview, Dataset.open(tmp_path)).shape[0] < preview.shape[0]
