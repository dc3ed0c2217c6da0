"""Center crops of single images, against those of the loader and of Pillow."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline import Loader, UsageError
from pipeline.dataset.samples import read_stored
from pipeline.loader.views import EvalView
from trainer.inference.preprocess import as_batch, crop_of_file, crop_of_stored


@pytest.fixture
def spec(tiny_classifier):
    return tiny_classifier.spec


def test_stored_images_are_cut_as_the_loader_cuts_them(tiny_dataset, spec):
    with Loader(tiny_dataset, "val", EvalView("center", spec.crop), 30) as loader:
        images = next(iter(loader)).images
    crops = [crop_of_stored(image.data, spec) for image in read_stored(tiny_dataset, "val", range(30))]
    np.testing.assert_array_equal(as_batch(crops).numpy(), images.numpy())


@pytest.mark.parametrize("shape", [(72, 101), (100, 72), (73, 73)])
def test_the_center_of_an_image_of_any_shape(spec, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    spec = replace(spec, size=min(shape))
    top, left = (shape[0] - 64) // 2, (shape[1] - 64) // 2
    np.testing.assert_array_equal(
        crop_of_stored(file.getvalue(), spec), pixels[top : top + 64, left : left + 64]
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file"),
        (b"", "empty file"),
        (b"\xff\xd8\xff no image", "cannot be read as an image"),
    ],
)
def test_files_that_are_no_images(tmp_path, spec, content, text):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"{path}: .*{text}"):
        crop_of_file(path, spec)


def test_a_damaged_stored_image(spec):
    with pytest.raises(UsageError, match=r"does not decode .*alexnet-prep verify"):
        crop_of_stored(b"junk", spec)
