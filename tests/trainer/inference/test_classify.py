"""Classifying image files gives the probabilities of Pillow and NumPy."""

import copy
import io
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.reference import probabilities_of, stored
from PIL import Image

from pipeline import UsageError
from trainer.inference.classify import classify_images, find_images
from trainer.models.classifier import Classifier


@pytest.fixture(scope="module")
def samples(tiny_dataset):
    """Validation images, sorted by key."""
    return sorted(stored(tiny_dataset), key=lambda sample: sample.key)


@pytest.fixture(scope="module")
def files(tiny_source, samples):
    """The source files of `samples`."""
    paths = {path.stem: path for path in (tiny_source / "val").rglob("*.jpg")}
    return [paths[sample.key] for sample in samples]


@pytest.mark.parametrize(("views", "networks"), [("center", 1), ("ten-crop", 1), ("center", 2)])
def test_probabilities_are_those_of_pillow_and_numpy(tiny_classifier, samples, files, views, networks):
    """The reference decodes the stored images with Pillow and crops in NumPy; it shares only the layers."""
    models = [tiny_classifier, copy.deepcopy(tiny_classifier)][:networks]
    torch.nn.init.normal_(models[-1].model.fc8.weight, std=0.5)
    expected = np.mean([probabilities_of(model, samples, views) for model in models], axis=0)
    names = tiny_classifier.spec.classes
    found = list(classify_images(models, files, views, batch_size=7))
    for prediction, row, file in zip(found, expected, files, strict=True):
        assert prediction.image == file
        order = np.argsort(-row, kind="stable")[:5]
        assert [guess.id for guess in prediction.guesses] == [names[k] for k in order]
        np.testing.assert_allclose([g.probability for g in prediction.guesses], row[order], atol=1e-6)


@pytest.mark.parametrize("change", [{"quality": 60}, {"mode": "aspect"}, {"size": 80}, {"crop": 72}], ids=str)
def test_networks_of_an_ensemble_need_the_same_pixels(tiny_classifier, change):
    other = Classifier(replace(tiny_classifier.spec, **change))
    with pytest.raises(UsageError, match="must share classes, crop, and the images' size, mode and quality"):
        next(classify_images([tiny_classifier, other], []))


def test_unreadable_files_yield_their_error_in_order(tiny_classifier, tmp_path):
    def png(mode):
        buffer = io.BytesIO()
        Image.new(mode, (90, 80), 7).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
        return buffer.getvalue()

    for name, data in (("a.png", png("L")), ("b.jpg", b"no"), ("c.tif", png("CMYK")), ("d.jpg", b"")):
        (tmp_path / name).write_bytes(data)
    files = [*sorted(tmp_path.iterdir()), tmp_path / "gone.jpg"]
    predictions = list(classify_images([tiny_classifier], files, batch_size=2))
    assert [a.image for a in predictions] == files
    assert [bool(a.guesses) for a in predictions] == [True, False, True, False, False]
    assert "b.jpg: cannot be read as an image" in predictions[1].error
    assert "gone.jpg: No such file" in predictions[4].error


def test_folders_are_searched_and_hidden_files_left_out(tmp_path):
    for name in ("b/z.JPG", "b/a.png", "a.webp", ".hidden/x.jpg", "b/.y.jpg", "notes.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = find_images([tmp_path / "odd.name", tmp_path / "in"])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "odd.name",
        "in/a.webp",
        "in/b/a.png",
        "in/b/z.JPG",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: holds no images"):
        find_images([tmp_path / "empty"])


def test_of_a_folder_pipes_are_left_out_and_dead_links_kept(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpe").symlink_to(tmp_path / "gone")
    (tmp_path / "folder.jpg").mkdir()
    assert find_images([tmp_path]) == [tmp_path / "link.jpe"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
        find_images([tmp_path])
