import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.buckets import upload

from pipeline import Dataset
from pipeline.errors import UsageError
from pipeline.storage.open import open_store


@pytest.fixture
def copy(tiny_dataset, tmp_path):
    """A copy of the tiny dataset, for the test to damage."""
    return shutil.copytree(tiny_dataset.root, tmp_path / "copy")


def test_an_opened_dataset_says_what_it_is(tiny_dataset, tiny_source):
    assert tiny_dataset.samples("train") == 90
    assert tiny_dataset.samples("val") == 30
    assert tiny_dataset.classes == sorted(path.name for path in (tiny_source / "train").iterdir())
    assert dataclasses.asdict(tiny_dataset.image) == {
        "size": 72,
        "mode": "square",
        "quality": 95,
        "subsampling": "4:2:0",
    }
    assert tiny_dataset.statistics.pixels == 90 * 72 * 72


def test_paths_of_shards(tiny_dataset):
    root = tiny_dataset.root
    assert tiny_dataset.tars("train") == [root / f"train/train-00000{k}.tar" for k in range(2)]
    assert tiny_dataset.indexes("train") == [root / f"train/train-00000{k}.idx" for k in range(2)]
    assert tiny_dataset.tars("val") == [root / "val/val-000000.tar"]
    assert [shard.samples for shard in tiny_dataset.shards("train")] == [45, 45]


def test_a_string_or_a_file_address_opens_as_well(tiny_dataset):
    for root in (str(tiny_dataset.root), f"file://{tiny_dataset.root}"):
        assert Dataset.open(root) == tiny_dataset


def test_a_missing_split_is_named(tiny_dataset):
    for call in (tiny_dataset.shards, tiny_dataset.samples, tiny_dataset.tars, tiny_dataset.indexes):
        with pytest.raises(UsageError, match="has no split 'test', only train, val"):
            call("test")


def test_mean_image(tiny_dataset):
    image = tiny_dataset.mean_image()
    assert image.shape == (72, 72, 3)
    assert image.dtype == np.float32
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
    with pytest.raises(UsageError, match=r"mean_image\.npy: unreadable .*prepare the dataset again"):
        Dataset.open(copy).mean_image()


@pytest.mark.parametrize(
    ("mode", "layout", "reason"),
    [
        ("aspect", "folders", "prepared with --keep-aspect"),
        ("original", "folders", "prepared with --keep-original"),
        ("aspect", "adopted", "its tars hold images of different shapes"),
        ("original", "adopted", "its tars hold images of different shapes"),
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


def test_a_dataset_in_a_bucket_opens_but_has_no_folder(tiny_dataset, s3):
    upload(tiny_dataset.root, f"{s3}/set")
    found = Dataset.open(f"{s3}/set")
    assert (found.url, found.manifest) == (f"{s3}/set", tiny_dataset.manifest)
    assert found.fingerprint == tiny_dataset.fingerprint
    assert np.array_equal(found.mean_image(), tiny_dataset.mean_image())
    with pytest.raises(UsageError, match=f"{s3}/set: this needs the dataset on this machine; copy it here"):
        found.tars("train")
    open_store(f"{s3}/set").remove("train/train-000001.idx")
    with pytest.raises(UsageError, match=f"{s3}/set/train/train-000001.idx: missing"):
        Dataset.open(f"{s3}/set")


def test_a_cut_shard_is_refused_on_opening(copy):
    path = copy / "val" / "val-000000.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=f"{path}: .* bytes, but the manifest says .*alexnet-prep verify"):
        Dataset.open(copy)


@pytest.mark.parametrize("name", ["train/train-000001.tar", "train/train-000001.idx"])
def test_a_missing_file_is_refused_on_opening(copy, name):
    (copy / name).unlink()
    with pytest.raises(UsageError, match=f"{copy / name}: missing.*alexnet-prep verify"):
        Dataset.open(copy)


def test_no_dataset(tmp_path):
    with pytest.raises(UsageError, match="not a prepared dataset"):
        Dataset.open(tmp_path)


def test_the_fingerprint_is_of_the_contents_not_of_the_place(tiny_dataset, copy):
    found = Dataset.open(copy)
    assert found.fingerprint == tiny_dataset.fingerprint
    assert len(found.fingerprint) == 64
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["val"][0]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert Dataset.open(copy).fingerprint != found.fingerprint
