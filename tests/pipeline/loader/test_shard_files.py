"""All ways to read shards give the same batches: mapped, read, cached, from a bucket."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.buckets import start_gcs, upload
from helpers.synthetic import tiny_images, write_dataset

from pipeline import Dataset, EvalView, Loader, Placement, ReadOptions, RunError, TrainView, UsageError
from pipeline.dataset.index import parse_index
from pipeline.loader.order import Piece
from pipeline.loader.shard_files import ShardFiles


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = tiny_images(36)
    return write_dataset(tmp_path_factory.mktemp("access") / "d", {"train": images, "val": images}, 16, 3)


def read(dataset, access=None):
    """Keys and images of a training epoch, and the keys of an evaluation."""
    with Loader(dataset, "train", TrainView(12), 7, access=access, keys=True, epochs=1) as loader:
        shown = [(batch.keys, batch.images.clone()) for batch in loader]
    with Loader(dataset, "val", EvalView(crop=16), 8, access=access, keys=True) as loader:
        return [*zip(*shown, strict=True), [key for batch in loader for key in batch.keys]]


@pytest.fixture(scope="module")
def expected(data):
    return read(data)


def assert_equal(got, expected):
    assert (got[0], got[2]) == (expected[0], expected[2])
    assert all(torch.equal(a, b) for a, b in zip(got[1], expected[1], strict=True))


def test_read_mapped_or_cached_the_batches_are_the_same(data, expected, tmp_path):
    size = sum(shard.bytes for shard in data.shards("train"))
    assert_equal(read(data, ReadOptions(mmap=False)), expected)
    assert_equal(read(data, ReadOptions(cache=tmp_path / "all")), expected)
    assert_equal(read(data, ReadOptions(cache=tmp_path / "some", cache_limit=2 * size)), expected)


def test_a_dataset_in_an_s3_bucket_gives_the_same_batches(data, expected, s3, tmp_path):
    upload(data.root, f"{s3}/set")
    remote = Dataset.open(f"{s3}/set")
    assert_equal(read(remote), expected)
    assert_equal(read(remote, ReadOptions(cache=tmp_path)), expected)


def test_a_dataset_in_a_bucket_of_googles_gives_the_same_batches(data, expected, monkeypatch):
    with start_gcs("shards") as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.setenv("DALI_GCS_ENDPOINT_URL", address)
        monkeypatch.setenv("DALI_GCS_ANONYMOUS", "1")
        upload(data.root, "gs://shards/set")
        assert_equal(read(Dataset.open("gs://shards/set")), expected)


@pytest.mark.parametrize(
    ("url", "mmap", "message"),
    [
        ("memory://somewhere/set", True, r"DALI reads s3:// and gs:// only; give --cache"),
        ("s3://somewhere/set", False, r"s3://somewhere/set: .* leave --no-mmap out"),
    ],
)
def test_a_bucket_that_cannot_be_read_so_is_refused(data, url, mmap, message):
    with pytest.raises(UsageError, match=message):
        Loader(replace(data, url=url), "train", TrainView(12), 7, access=ReadOptions(mmap=mmap))


def test_a_part_of_a_shard_has_an_index_of_its_own(data):
    opened = ShardFiles(data, "train", ReadOptions()).acquire([Piece(1, 0, 12), Piece(0, 3, 5)])
    assert opened.samples == 14
    assert opened.names == ["train/train-000001.tar", "train/train-000000.tar"]
    assert opened.tars == [str(data.root / name) for name in opened.names]
    whole, part = map(Path, opened.indexes)
    indexes = data.indexes("train")
    assert whole == indexes[1]
    assert parse_index(part.read_bytes()) == parse_index(indexes[0].read_bytes())[3:5]
    opened.release()
    assert not part.exists()
    assert whole.exists()


def test_an_index_that_the_manifest_does_not_know_is_an_error(tmp_path):
    """An index lacks a sample: Python finds out if part of the shard is read, DALI if all of it is."""
    data = write_dataset(tmp_path / "d", {"train": tiny_images(12)}, 16, 2)
    path = data.indexes("train")[0]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["v1.2 5", *lines[1:-1], ""]))
    found = set()
    for epoch in range(4):  # the epoch decides which shard is read in part
        with Loader(data, "train", TrainView(12), 12) as loader:
            loader.set_epoch(epoch)
            with pytest.raises((UsageError, RunError), match=r"the manifest says (6|12)") as caught:
                list(loader)
            found.add(caught.type)
    assert found == {UsageError, RunError}


def test_a_cache_must_hold_what_the_processes_of_a_host_use_at_once(data, tmp_path):
    size = sum(shard.bytes for shard in data.shards("train"))
    place = Placement(0, 2, local_world_size=2)
    few, enough = (ReadOptions(cache=tmp_path, cache_limit=limit) for limit in (1000, 3 * size))
    with pytest.raises(UsageError, match="--cache-limit of 1,000 bytes is too little for train"):
        Loader(data, "train", TrainView(12), 7, placement=place, access=few)
    Loader(data, "train", TrainView(12), 7, access=enough).close()
    folder = tmp_path / "alexnet-shards"
    folder.mkdir()
    (folder / "notes").write_bytes(bytes(3 * size))
    with pytest.raises(UsageError, match=rf"holds {3 * size:,} bytes of other programs; give at least "):
        Loader(data, "train", TrainView(12), 7, access=enough)
