"""Crops of single images, against those of the loader."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers.folders import draw_image, encoded, place

from pipeline import Dataset, Loader, Options, UsageError, prepare, read_source
from pipeline.loader.views import EvalView
from trainer.inference.examples import stored_images
from trainer.inference.preprocess import as_batch, crop_of_stored, crops_of_file
from trainer.models.classifier import new_classifier


@pytest.fixture
def spec(tiny_classifier):
    return tiny_classifier.spec


@pytest.mark.parametrize("views", ["center", "ten-crop"])
@pytest.mark.parametrize(
    "options", [{}, {"quality": 60}, {"keep_aspect": True}, {"keep_original": True}], ids=str
)
def test_files_give_the_pixels_that_the_loader_gives_once_they_are_prepared(
    tiny_source, tiny_recipe, tmp_path, options, views
):
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    place(source / "val" / "bricks" / "narrow.png", encoded(draw_image(5, 73, 190), "PNG"))
    prepare(read_source(source), tmp_path / "dataset", Options(size=72, **options))
    dataset = Dataset.open(tmp_path / "dataset")
    spec = new_classifier(replace(tiny_recipe, mean="channel"), dataset).spec
    files = {path.stem: path for path in (source / "val").rglob("*.*")}
    with Loader(dataset, "val", EvalView(views, spec.crop), 40) as loader:
        [batch] = loader
    found = as_batch([crops_of_file(files[key], spec, views) for key in batch.keys])
    np.testing.assert_array_equal(found.numpy(), batch.images.numpy())
    if views == "center":
        found = as_batch([image.crop for image in stored_images(dataset, "val", range(31), spec)])
        np.testing.assert_array_equal(found.numpy(), batch.images.numpy())


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
        crops_of_file(path, spec)


def test_a_damaged_stored_image(tiny_dataset):
    with pytest.raises(UsageError, match=r"does not decode .*alexnet-prep verify"):
        crop_of_stored(b"junk", 64, tiny_dataset.image)
