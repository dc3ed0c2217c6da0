"""Classifying image files gives the probabilities of the evaluation, and of Pillow and NumPy."""

import io
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import EvalView, Loader, UsageError
from pipeline.images.codec import encode
from trainer.inference.classify import classify_images, find_images
from trainer.inference.preprocess import crop_of_file


def stored_images(dataset, folder):
    """Extract the validation images of a dataset as KEY.jpg."""
    for tar in dataset.tars("val"):
        with tarfile.open(tar) as file:
            for member in file:
                if member.name.endswith(".jpg"):
                    (folder / member.name).write_bytes(file.extractfile(member).read())
    return sorted(folder.iterdir())


@pytest.mark.parametrize("views", ["center", "ten-crop"])
def test_stored_images_get_the_evaluations_probabilities(tiny_dataset, tiny_classifier, tmp_path, views):
    files = stored_images(tiny_dataset, tmp_path)
    predictions = {a.image.stem: a for a in classify_images([tiny_classifier], files, views, batch_size=7)}
    assert len(predictions) == 30
    crop = tiny_classifier.spec.crop
    with Loader(tiny_dataset, "val", EvalView(views, crop), 30, keys=True) as loader:
        (batch,) = loader
    images = batch.images if views == "ten-crop" else batch.images[:, None]
    with torch.inference_mode():
        tiny_classifier.eval()
        expected = torch.stack(
            [tiny_classifier.classify(view).double().softmax(dim=1) for view in images.unbind(dim=1)]
        ).mean(dim=0)
    for key, row in zip(batch.keys, expected, strict=True):
        guesses = predictions[key].guesses
        assert [guess.id for guess in guesses] == [
            tiny_dataset.classes[k] for k in np.argsort(-row.numpy(), kind="stable")[:5]
        ]
        np.testing.assert_allclose([g.probability for g in guesses], sorted(row, reverse=True)[:5], atol=1e-6)


@pytest.mark.parametrize("views", ["center", "ten-crop"])
def test_stored_images_get_the_probabilities_of_pillow_and_numpy(
    tiny_dataset, tiny_classifier, tmp_path, views
):
    """The reference decodes with Pillow and preprocesses in NumPy; it shares only the layers."""
    files = stored_images(tiny_dataset, tmp_path)[:5]
    model, side = tiny_classifier.eval(), tiny_classifier.spec.crop
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]).astype(np.float32)
    far = pixels.shape[1] - side
    corners = [(far // 2, far // 2)]
    if views == "ten-crop":
        corners = [(0, 0), (0, far), (far, 0), (far, far), *corners]
    cut = [pixels[:, y : y + side, x : x + side] for y, x in corners]
    cut += [crop[:, :, ::-1] for crop in cut] if views == "ten-crop" else []
    mean_image = np.load(tiny_dataset.root / "mean_image.npy")[far // 2 :, far // 2 :][:side, :side]
    prepared = [np.ascontiguousarray((crop - mean_image).transpose(0, 3, 1, 2)) for crop in cut]
    with torch.inference_mode():
        logits = np.stack([model.model(torch.from_numpy(crop)).numpy() for crop in prepared]).astype(
            np.float64
        )
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    expected = (powers / powers.sum(axis=2, keepdims=True)).mean(axis=0)
    for prediction, row in zip(classify_images([model], files, views, top=10), expected, strict=True):
        found = {guess.id: guess.probability for guess in prediction.guesses}
        np.testing.assert_allclose([found[name] for name in model.spec.classes], row, rtol=1e-12)


def test_a_source_file_differs_from_its_stored_image_by_the_encoding_alone(
    tiny_source, tiny_dataset, tiny_classifier, tmp_path
):
    stored = {path.stem: path for path in stored_images(tiny_dataset, tmp_path)}
    files = sorted((tiny_source / "val").rglob("*.jpg"))
    whole = replace(tiny_classifier.spec, crop=tiny_classifier.spec.size)
    for file in files:
        assert encode(crop_of_file(file, whole), 95) == stored[file.stem].read_bytes()
    pairs = zip(
        classify_images([tiny_classifier], files, top=10),
        classify_images([tiny_classifier], [stored[file.stem] for file in files], top=10),
        strict=True,
    )
    differences = []
    for fresh, again in pairs:
        theirs = {guess.id: guess.probability for guess in again.guesses}
        differences += [abs(guess.probability - theirs[guess.id]) for guess in fresh.guesses]
    assert 0 < np.mean(differences) < 0.02


def test_an_ensemble_averages_probabilities(tiny_dataset, tiny_classifier, tmp_path):
    import copy

    files = stored_images(tiny_dataset, tmp_path)[:3]
    other = copy.deepcopy(tiny_classifier)
    torch.nn.init.normal_(other.model.fc8.weight, std=0.5)
    single = [
        {g.id: g.probability for g in a.guesses}
        for model in (tiny_classifier, other)
        for a in classify_images([model], files, top=10)
    ]
    for k, prediction in enumerate(classify_images([tiny_classifier, other], files, top=10)):
        for guess in prediction.guesses:
            mean = (single[k][guess.id] + single[k + 3][guess.id]) / 2
            assert guess.probability == pytest.approx(mean, abs=1e-9)


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
