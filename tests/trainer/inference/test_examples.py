"""Predictions and neighbors of single images, against references computed over the whole split."""

import numpy as np
import pytest
import torch
from helpers.reference import softmax
from sklearn.neighbors import NearestNeighbors

from pipeline import UsageError
from trainer import load_model
from trainer.inference.examples import (
    UNKNOWN,
    NamedImage,
    named_images,
    predict,
    some_images,
    some_predictions,
    stored_images,
)
from trainer.inference.features import features
from trainer.inference.neighbors import find_neighbors
from trainer.inference.preprocess import as_batch


@pytest.fixture
def trained(tiny_run):
    return load_model(tiny_run)


@pytest.fixture
def val_crops(trained, tiny_dataset):
    """Key → (label, crop) of every image of the validation split."""
    images = stored_images(tiny_dataset, "val", range(30), trained.spec)
    return {image.name: (image.label, image.crop) for image in images}


def reference(trained, crop):
    """Probabilities of a crop, with the softmax in NumPy."""
    with torch.inference_mode():
        return softmax(trained.classifier.classify(as_batch([crop]))[0].numpy().astype(np.float64))


def test_predictions_are_softmaxes_top_five(trained, tiny_dataset):
    for one in some_predictions(trained.classifier, tiny_dataset, "val", 30, seed=0):
        shares = reference(trained, one.image.crop)
        assert list(one.classes) == np.argsort(-shares, kind="stable")[:5].tolist()
        np.testing.assert_allclose(one.probabilities, np.sort(shares)[::-1][:5], rtol=1e-4)


def test_ties_are_sorted_by_class_number(trained):
    with torch.no_grad():
        trained.classifier.model.fc8.weight.zero_()
        trained.classifier.model.fc8.bias.zero_()
    image = NamedImage("p", np.zeros((64, 64, 3), np.uint8), 3)
    (found,) = predict(trained.classifier, [image])
    assert found.classes == (0, 1, 2, 3, 4)
    assert found.probabilities == pytest.approx([0.1] * 5)
    assert not found.right


def test_the_seed_determines_the_images(trained, tiny_dataset):
    def keys(seed, count=6):
        found = some_predictions(trained.classifier, tiny_dataset, "val", count, seed)
        return [one.image.name for one in found]

    assert keys(1) == keys(1) != keys(2)
    assert len(set(keys(3, 30))) == len(keys(3, 100)) == 30
    images = some_images(tiny_dataset, "val", trained.spec, 6, 1)
    assert [image.name for image in images] == keys(1)


def test_only_errors_finds_every_misclassified_image(trained, tiny_dataset, val_crops):
    found = some_predictions(trained.classifier, tiny_dataset, "val", 30, 0, only_errors=True)
    wrong = {key for key, (label, crop) in val_crops.items() if reference(trained, crop).argmax() != label}
    assert {one.image.name for one in found} == wrong
    assert 0 < len(wrong) < 30


def test_neighbors_are_scikit_learns_over_the_whole_split(trained, tiny_dataset):
    queries = some_images(tiny_dataset, "val", trained.spec, 3, 0)
    queries += some_images(tiny_dataset, "train", trained.spec, 1, 5)
    seen = []
    found = find_neighbors(
        trained.classifier,
        queries,
        tiny_dataset,
        count=5,
        batch_size=16,
        on_progress=lambda *d: seen.append(d),
    )
    stored = stored_images(tiny_dataset, "train", range(90), trained.spec)
    rows = features(trained.classifier, as_batch([image.crop for image in stored]))
    wanted = features(trained.classifier, as_batch([query.crop for query in queries]))
    distances, indices = NearestNeighbors(algorithm="brute").fit(rows).kneighbors(wanted, 5)
    for one, query, near, far in zip(found, queries, indices, distances, strict=True):
        assert one.query is query
        assert [image.name for image in one.found] == [stored[place].name for place in near]
        assert [image.label for image in one.found] == [stored[place].label for place in near]
        np.testing.assert_allclose(one.distances, far, rtol=1e-3, atol=1e-3)
    assert seen[-1] == (90, 90)
    assert found[3].found[0].name == queries[3].name  # an image is its own nearest
    assert found[3].distances[0] == pytest.approx(0, abs=1e-3)


def test_images_by_key_and_by_file(trained, tiny_dataset, tiny_source, val_crops):
    file = next(tiny_source.rglob("*.jpg"))
    key = list(val_crops)[3]
    found = named_images([str(file), key], trained.spec, tiny_dataset)
    assert [(image.name, image.label) for image in found] == [
        (file.name, UNKNOWN),
        (key, val_crops[key][0]),
    ]
    np.testing.assert_array_equal(found[1].crop, val_crops[key][1])


def test_names_that_are_neither_key_nor_file(trained, tiny_dataset):
    with pytest.raises(UsageError, match="no image of val has the key 'nothing'"):
        named_images(["nothing"], trained.spec, tiny_dataset)
    with pytest.raises(UsageError, match="nothing: no such file, and no dataset is known"):
        named_images(["nothing"], trained.spec, None)
