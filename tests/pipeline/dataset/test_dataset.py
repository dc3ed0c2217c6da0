import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.buckets import upload
from helpers.folders import refused

from pipeline import Dataset, RunError, verify_checksums
from pipeline.errors import UsageError
from pipeline.storage.open import open_store


@pytest.fixture
def copy(tiny_dataset, tmp_path):
    """A copy of the tiny dataset, for the test to damage."""
    return shutil.copytree(tiny_dataset.root, tmp_path / "copy")


def test_an_opened_dataset_says_what_it_is(tiny_dataset, tiny_source):
    assert (len(tiny_dataset.samples("train")), len(tiny_dataset.samples("val"))) == (90, 30)
    assert tiny_dataset.classes == sorted(path.name for path in (tiny_source / "train").iterdir())
    image = {"size": 72, "mode": "square", "quality": 95, "subsampling": "4:2:0"}
    assert dataclasses.asdict(tiny_dataset.image) == image
    assert tiny_dataset.statistics.pixels == 90 * 72 * 72
    root = tiny_dataset.root
    assert tiny_dataset.tars("train") == [root / f"train/train-00000{k}.tar" for k in range(2)]
    assert tiny_dataset.indexes("train") == [root / f"train/train-00000{k}.idx" for k in range(2)]
    assert [shard.samples for shard in tiny_dataset.shards("train")] == [45, 45]
    assert tiny_dataset.manifest.shards == [*tiny_dataset.shards("train"), *tiny_dataset.shards("val")]


def test_a_missing_split_is_named(tiny_dataset):
    for call in (tiny_dataset.shards, tiny_dataset.samples, tiny_dataset.tars, tiny_dataset.indexes):
        refused(lambda call=call: call("test"), "has no split 'test', only train, val")


def test_mean_image(tiny_dataset):
    image = tiny_dataset.mean_image()
    assert (image.shape, image.dtype) == ((72, 72, 3), np.float32)
    assert np.allclose(image.mean(axis=(0, 1), dtype=np.float64), tiny_dataset.statistics.mean, atol=1e-4)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "pickle"])
def test_a_damaged_mean_image_is_named(copy, damage):
    path = copy / "mean_image.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "pickle":
        np.save(path, np.array([{}], dtype=object))
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 500])
    refused(Dataset.open(copy).mean_image, "mean_image.npy: unreadable ", "prepare the dataset again")


@pytest.mark.parametrize(
    ("mode", "layout", "reason"),
    [
        ("aspect", "folders", "prepared with --keep-aspect"),
        ("original", "folders", "prepared with --keep-original"),
        ("aspect", "adopted", "its tars hold images of different shapes"),
    ],
)
def test_images_of_different_shapes_have_no_mean_image(tiny_dataset, mode, layout, reason):
    manifest = dataclasses.replace(
        tiny_dataset.manifest,
        image=dataclasses.replace(tiny_dataset.image, mode=mode),
        source=dataclasses.replace(tiny_dataset.manifest.source, layout=layout),
    )
    with pytest.raises(UsageError, match=rf"{reason}, so it has no mean image.*--set mean=channel"):
        Dataset(tiny_dataset.root, manifest).mean_image()


def test_a_dataset_in_a_bucket_is_read_as_one_in_a_folder(tiny_dataset, s3):
    url, store = f"{s3}/set", open_store(f"{s3}/set")
    refused(lambda: Dataset.open(url), f"{url}: not a prepared dataset")
    store.write(".work/plan.json", b"{}")
    refused(lambda: Dataset.open(url), f"{url}: preparation is unfinished")
    upload(tiny_dataset.root, url)
    found = Dataset.open(url)
    assert (found.url, found.manifest) == (url, tiny_dataset.manifest)
    assert found.fingerprint == tiny_dataset.fingerprint
    assert np.array_equal(found.mean_image(), tiny_dataset.mean_image())
    stored, samples = tiny_dataset.samples("val").stored([6, 0]), found.samples("val")
    assert samples.stored(samples.positions([sample.key for sample in stored])) == stored
    refused(lambda: found.tars("train"), f"{url}: this needs the dataset on this machine; copy it here")
    verify_checksums(found)
    store.write("train/train-000001.tar", b"other")
    refused(lambda: verify_checksums(found), f"{url}: 1 of 3 ", "train-000001", error=RunError)
    store.remove("train/train-000001.idx")
    refused(lambda: Dataset.open(url), f"{url}/train/train-000001.idx: missing")


def test_the_fingerprint_is_of_the_contents_not_of_the_place(tiny_dataset, copy):
    found = Dataset.open(copy)
    assert found.fingerprint == tiny_dataset.fingerprint
    assert len(found.fingerprint) == 64
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["val"][0]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert Dataset.open(copy).fingerprint != found.fingerprint
