"""A split's samples by position, by key and through webdataset, beside Python's tarfile and the loader."""

import os
import shutil
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
import webdataset
from helpers.buckets import upload
from helpers.folders import overwrite, refused, samples
from helpers.synthetic import tiny_images, write_dataset
from hypothesis import given, strategies as st

from pipeline import Dataset, EvalView, Loader, RunError, UsageError
from pipeline.dataset.index import read_index

SIZE = 16
BRIGHTER = partial(np.add, np.float32(1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "d"
    return write_dataset(folder, {"train": tiny_images(11), "val": tiny_images(7, seed=1)}, SIZE, shards=3)


@pytest.fixture
def copy(data, tmp_path):
    """A copy of the dataset, for the test to damage."""
    return Dataset.open(shutil.copytree(data.root, tmp_path / "d"))


def in_workers(dataset, start):
    """Sum of each image, and label, that a DataLoader with two workers collates."""
    context = torch.multiprocessing.get_context(start)
    loader = torch.utils.data.DataLoader(dataset, 4, num_workers=2, multiprocessing_context=context)
    return sorted(
        (image.sum().item(), label.item())
        for images, labels, *_ in loader
        for image, label in zip(images, labels, strict=True)
    )


@given(positions=st.lists(st.integers(0, 6), max_size=20))
def test_stored_samples_come_in_the_order_of_the_positions_and_repeat(data, positions):
    inside = samples(data.root, "val")
    keys = list(inside)
    found = data.samples("val").stored(positions)
    assert [one.key for one in found] == [keys[position] for position in positions]
    assert [(one.data, one.digits) for one in found] == [inside[one.key] for one in found]
    assert [one.label for one in found] == [int(inside[one.key][1]) for one in found]


@given(position=st.integers(-20, 20))
def test_positions_are_those_of_a_list(data, position):
    found = data.samples("train")
    if -11 <= position < 11:
        assert found[position].key == found[np.int64(position)].key == found.keys()[position]
    else:
        with pytest.raises(IndexError, match=f"position {position} of train, which has 11 samples"):
            found[position]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset does not close its tars
def test_all_ways_to_the_samples_show_the_same(data, split):
    with Loader(data, split, EvalView("center", SIZE), 4) as loader:
        batches = list(loader)
    images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    keys = [key for batch in batches for key in batch.keys]
    found = list(data.samples(split))
    assert keys == data.samples(split).keys() == [one.key for one in found]
    assert labels == [one.label for one in found]
    assert all(one.image.dtype == np.uint8 and one.image.flags.writeable for one in found)
    np.testing.assert_array_equal(np.stack([one.image for one in found]), images)
    brighter = [one.image for one in data.samples(split, transform=BRIGHTER)]
    np.testing.assert_array_equal(np.stack(brighter), images + 1)
    decoded = list(data.webdataset(split))
    assert labels == [label for _, label in decoded]
    np.testing.assert_array_equal(np.stack([image for image, _ in decoded]), images)
    theirs = webdataset.WebDataset([str(tar) for tar in data.tars(split)], shardshuffle=False)
    for one, other in zip(data.webdataset(split, decode=False), theirs, strict=True):
        assert one == {name: other[name] for name in ("__key__", "__url__", "jpg", "cls")}


def test_keys_are_found_in_the_loaders_order(data):
    found = data.samples("train")
    keys = found.keys()
    assert found.positions([keys[10], keys[0], keys[4]]) == [10, 0, 4]
    assert found.positions([]) == []
    refused(
        lambda: found.positions(["train-1", "no"]), "no image of train has the key 'no'", "like 'train-0'"
    )


@given(
    processes=st.integers(1, 3),
    workers=st.integers(1, 4),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    shuffle=st.sampled_from([0, 2, 100]),
)
def test_processes_and_workers_share_an_epoch_of_webdatasets_pipeline(
    data, processes, workers, seed, epoch, shuffle
):
    pipeline = data.webdataset("train", shuffle=shuffle, seed=seed, epoch=epoch, decode=False)
    seen = []
    for rank in range(processes):
        for worker in range(workers):
            place = {"RANK": rank, "WORLD_SIZE": processes, "WORKER": worker, "NUM_WORKERS": workers}
            with patch.dict(os.environ, {name: str(value) for name, value in place.items()}):
                keys = [one["__key__"] for one in pipeline]
                assert keys == [one["__key__"] for one in pipeline]  # made again, it is the same epoch
            seen += keys
    assert sorted(seen) == sorted(data.samples("train").keys())
    if not shuffle and processes == workers == 1:
        assert seen == data.samples("train").keys()


def test_webdatasets_pipeline_has_another_order_in_each_epoch_and_with_each_seed(data):
    orders = {
        tuple(one["__key__"] for one in data.webdataset("train", shuffle=100, decode=False, **keys))
        for keys in ({}, {"epoch": 1}, {"seed": 1}, {"seed": 1, "epoch": 1})
    }
    assert len(orders) == 4


def test_webdatasets_pipeline_is_refused_to_more_processes_than_shards(data, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused(lambda: list(data.webdataset("train")), "train has 3 shards, fewer than 4 processes")


def test_no_name_is_a_command(data, tmp_path, monkeypatch):
    """webdataset's own opener would run it."""
    monkeypatch.chdir(tmp_path)
    name = "pipe:touch found; cat"
    shutil.copytree(data.root, name)
    found = Dataset.open(name)
    assert len(list(found.webdataset("train"))) == 11
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_dataloader_see_every_sample_once(data, start):
    found = data.samples("train", BRIGHTER)
    expected = sorted((float(one.image.sum()), one.label) for one in found)
    assert in_workers(found, start) == expected
    assert in_workers(data.webdataset("train", shuffle=5).map_tuple(BRIGHTER), start) == expected


def test_forked_workers_read_a_bucket_that_their_parent_has_read(data, s3):
    upload(data.root, f"{s3}/d")
    found = Dataset.open(f"{s3}/d")
    expected = sorted((int(one.image.sum()), one.label) for one in found.samples("val"))
    assert expected == sorted((int(one.image.sum()), one.label) for one in data.samples("val"))
    assert in_workers(found.samples("val"), "fork") == expected
    assert in_workers(found.webdataset("val"), "fork") == expected


def test_a_shard_that_vanished_is_one_error(copy):
    copy.tars("val")[0].unlink()
    for call in (lambda: copy.samples("val")[0], lambda: list(copy.webdataset("val"))):
        refused(call, "val-000000.tar: unreadable (No such file", "alexnet-prep verify")


@pytest.mark.parametrize(
    ("at", "problem"), [("image_offsets", "is damaged: "), ("label_offsets", "its label is b'x")]
)
def test_a_damaged_sample_is_named(copy, at, problem):
    shard = copy.shards("val")[1]
    offset = getattr(read_index(copy.store, shard), at)[1]
    overwrite(copy.root / shard.name, offset, b"xxxx")
    for call in (lambda: copy.samples("val")[4], lambda: list(copy.webdataset("val"))):
        refused(call, "val-000001.tar: the sample val-4 (bytes ", problem, error=RunError)


def test_an_error_of_a_transform_names_the_sample(data):
    with pytest.raises(ZeroDivisionError) as raised:
        data.samples("val", transform=lambda image: 1 / 0)[2]
    assert raised.value.__notes__ == ["the transform failed for the sample val-2 of val"]


@pytest.mark.parametrize("position", [-1, 7])
def test_a_stored_position_outside_the_split(data, position):
    with pytest.raises(UsageError, match=f"asked for image {position} of val, which has 7"):
        data.samples("val").stored([position])
