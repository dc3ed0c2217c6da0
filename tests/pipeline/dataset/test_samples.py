"""Single samples of shards, compared with Python's tarfile and with the loader's order."""

import shutil

import pytest
from helpers.folders import samples
from helpers.synthetic import tiny_images, write_dataset

from pipeline import Dataset, Loader, UsageError
from pipeline.dataset.samples import find_places, read_stored, split_keys
from pipeline.loader.views import EvalView


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "d"
    return write_dataset(folder, {"train": tiny_images(11), "val": tiny_images(7, seed=1)}, 16, shards=3)


def test_images_come_in_the_order_of_the_positions_and_repeat(data):
    inside = samples(data.root, "val")
    keys = list(inside)
    positions = [6, 0, 3, 3, 5]
    found = read_stored(data, "val", positions)
    assert [image.key for image in found] == [keys[position] for position in positions]
    assert [(image.data, b"%04d" % image.label) for image in found] == [inside[image.key] for image in found]


def test_positions_and_keys_are_in_the_loaders_order(data):
    with Loader(data, "train", EvalView("center", 16), 4) as loader:
        keys = [key for batch in loader for key in batch.keys]
    assert [image.key for image in read_stored(data, "train", range(11))] == keys
    assert split_keys(data, "train") == keys
    assert find_places(data, "train", [keys[10], keys[0], keys[4]]) == [10, 0, 4]
    assert find_places(data, "train", []) == []


def test_a_shard_that_vanished_is_one_error(data, tmp_path):
    copy = Dataset.open(shutil.copytree(data.root, tmp_path / "d"))
    copy.tars("val")[0].unlink()
    with pytest.raises(UsageError, match=r"unreadable \(No such file.*alexnet-prep verify"):
        read_stored(copy, "val", [0])


def test_an_unknown_key_is_answered_with_a_known_one(data):
    with pytest.raises(UsageError, match=r"no image of val has the key 'val-33'; its keys look like 'val-0'"):
        find_places(data, "val", ["val-1", "val-33"])


@pytest.mark.parametrize("position", [-1, 7])
def test_a_position_outside_the_split(data, position):
    with pytest.raises(UsageError, match=f"asked for image {position} of val, which has 7"):
        read_stored(data, "val", [position])
