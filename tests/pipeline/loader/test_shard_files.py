"""All ways to read shards give the same batches: mapped, read, cached, from a bucket."""

from dataclasses import replace

import pytest
import torch
from helpers.buckets import start_gcs, upload
from helpers.synthetic import tiny_images, write_dataset

from pipeline import Dataset, EvalView, Loader, Placement, ReadOptions, RunError, TrainView, UsageError
from pipeline.dataset.index import index_path, read_index
from pipeline.loader.order import Piece
from pipeline.loader.shard_files import ShardFiles


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = tiny_images(60)
    return write_dataset(tmp_path_factory.mktemp("access") / "d", {"train": images, "val": images}, 16, 5)


def epochs(dataset, access=None, view=None, count=2):
    """Keys and images of some epochs."""
    with Loader(dataset, "train", view or TrainView(12), 7, access=access, keys=True) as loader:
        return [(batch.keys, batch.images.clone()) for _ in range(count) for batch in loader]


def assert_equal(got, expected):
    assert [keys for keys, _ in got] == [keys for keys, _ in expected]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(got, expected, strict=True))


def test_read_mapped_or_cached_the_batches_are_the_same(data, tmp_path):
    expected = epochs(data)
    assert_equal(epochs(data, ReadOptions(mmap=False)), expected)
    assert_equal(epochs(data, ReadOptions(cache=tmp_path / "all")), expected)
    size = sum(shard.bytes for shard in data.shards("train"))
    assert_equal(epochs(data, ReadOptions(cache=tmp_path / "some", cache_limit=2 * size)), expected)


@pytest.mark.parametrize("cached", [False, True])
def test_a_dataset_in_an_s3_bucket_gives_the_same_batches(data, s3, tmp_path, cached):
    upload(data.root, f"{s3}/set")
    remote = Dataset.open(f"{s3}/set")
    access = ReadOptions(cache=tmp_path / "cache" if cached else None)
    assert_equal(epochs(remote, access, count=1), epochs(data, count=1))
    with Loader(remote, "val", EvalView(crop=16), 8, access=access, keys=True) as loader:
        assert sorted(key for batch in loader for key in batch.keys) == sorted(f"val-{k}" for k in range(60))


def test_a_dataset_in_a_bucket_of_googles_gives_the_same_batches(data, monkeypatch):
    with start_gcs("shards") as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.setenv("DALI_GCS_ENDPOINT_URL", address)
        monkeypatch.setenv("DALI_GCS_ANONYMOUS", "1")
        upload(data.root, "gs://shards/set")
        assert_equal(epochs(Dataset.open("gs://shards/set"), count=1), epochs(data, count=1))


def test_a_bucket_that_dali_cannot_read_needs_a_cache(data):
    elsewhere = replace(data, url="memory://somewhere/set")
    with pytest.raises(UsageError, match=r"DALI reads s3:// and gs:// only; give --cache"):
        Loader(elsewhere, "train", TrainView(12), 7)


def test_of_a_bucket_nothing_is_mapped(data):
    elsewhere = replace(data, url="s3://somewhere/set")
    with pytest.raises(UsageError, match=r"s3://somewhere/set: .* leave --no-mmap out"):
        Loader(elsewhere, "train", TrainView(12), 7, access=ReadOptions(mmap=False))


def test_a_part_of_a_shard_has_an_index_of_its_own(data):
    shard_files = ShardFiles(data, "train", ReadOptions())
    opened = shard_files.acquire([Piece(1, 0, 12), Piece(0, 3, 5)])
    assert opened.samples == 14
    assert opened.names == ["train/train-000001.tar", "train/train-000000.tar"]
    assert opened.tars == [str(data.root / name) for name in opened.names]
    whole, part = map(type(data.root), opened.indexes)
    assert whole == index_path(data.tars("train")[1])
    assert read_index(part) == read_index(data.indexes("train")[0])[3:5]
    opened.release()
    assert not part.exists()
    assert whole.exists()


def test_an_index_that_the_manifest_does_not_know_is_an_error(data, tmp_path):
    """An index lacks a sample: Python finds out if part of the shard is read, DALI if all of it is."""
    copy = write_dataset(tmp_path / "d", {"train": tiny_images(12)}, 16, 2)
    path = copy.indexes("train")[0]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["v1.2 5", *lines[1:-1], ""]))
    for epoch in range(4):  # the epoch decides which shard is read in part
        with Loader(copy, "train", TrainView(12), 12) as loader:
            loader.set_epoch(epoch)
            with pytest.raises((UsageError, RunError), match=r"the manifest says (6|12)"):
                list(loader)


def test_a_cache_must_hold_what_the_processes_of_a_host_use_at_once(data, tmp_path):
    size = sum(shard.bytes for shard in data.shards("train"))
    place = Placement(0, 2, local_world_size=2)
    with pytest.raises(
        UsageError, match=r"--cache-limit of 1,000 bytes is too little for train of .* give at least"
    ):
        Loader(
            data,
            "train",
            TrainView(12),
            7,
            placement=place,
            access=ReadOptions(cache=tmp_path, cache_limit=1000),
        )
    Loader(data, "train", TrainView(12), 7, access=ReadOptions(cache=tmp_path, cache_limit=3 * size)).close()
