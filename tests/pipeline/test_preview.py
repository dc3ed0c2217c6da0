"""The preview: stored images on the left, crops of them to the right, the PCA plot below."""

import numpy as np
import pytest
import webdataset
from helpers.figures import pixels_of
from helpers.folders import draw_image, encoded
from helpers.synthetic import write_dataset
from PIL import Image

from pipeline import Dataset, Loader, TrainView, draw_preview
from pipeline.images.codec import resize_square
from pipeline.images.pca_plot import colors_along
from pipeline.loader.views import color_noise
from pipeline.preview import crops_of
from pipeline.verification.adopt import adopt


def cells(preview, side, rows):
    """The (rows, 8, side, side, 3) cells of a preview."""
    (image,) = preview.images
    canvas, step = np.asarray(image.get_array()), side + 6
    assert canvas.shape == (rows * step - 6, 8 * step - 6, 3)
    starts = [(y * step, x * step) for y in range(rows) for x in range(8)]
    found = np.array([canvas[top : top + side, left : left + side] for top, left in starts])
    return found.reshape(rows, 8, side, side, 3)


@pytest.mark.parametrize("noise", ["none", "paper", "source"])
@pytest.mark.parametrize(
    ("mode", "shape"), [("square", (64, 64)), ("aspect", (64, 96)), ("original", (200, 128))]
)
def test_rows_are_stored_images_and_the_crops_of_the_loaders_epochs(tmp_path, mode, shape, noise):
    images = [draw_image(seed, *shape) for seed in range(3)]
    data = write_dataset(tmp_path / "d", {"train": images}, 64, shards=1, mode=mode)
    found = cells(draw_preview(data, images=3, crop=48, noise=noise, seed=5), 48, 3)
    for thumbnail, image in zip(found[:, 0], images, strict=True):
        resized = Image.fromarray(resize_square(image, 64)).resize((48, 48), Image.Resampling.BOX)
        assert np.abs(thumbnail.astype(int) - np.asarray(resized)).mean() < 5
    view = TrainView(48, data.statistics.mean, noise=color_noise(noise, data.statistics))
    with Loader(data, "train", view, 3, seed=5) as loader:
        for epoch in range(7):
            [batch] = loader
            seen = crops_of(batch.images.permute(0, 2, 3, 1).numpy(), view)
            np.testing.assert_array_equal(found[batch.positions, 1 + epoch], seen)


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
