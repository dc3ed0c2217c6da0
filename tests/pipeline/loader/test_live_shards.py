"""All ways to read shards give the same batches: mapped, read, cached, from a bucket."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.buckets import start_gcs, upload
from helpers.synthetic import tiny_images, write_dataset

from pipeline import Dataset, EvalView, Loader, Placement, ReadOptions, TrainView, UsageError
from pipeline.loader.live_shards import LiveShards
from pipeline.loader.order import Use
from pipeline.loader.shard_cache import Cache


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = tiny_images(36)
    return write_dataset(tmp_path_factory.mktemp("access") / "d", {"train": images, "val": images}, 16, 3)


def read(dataset, access=None):
    """Keys and images of a training epoch, and the keys of an evaluation."""
    with Loader(dataset, "train", TrainView(12), 7, access=access) as loader:
        shown = [(batch.keys, batch.images.clone()) for batch in loader]
    with Loader(dataset, "val", EvalView(crop=16), 8, access=access) as loader:
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
        upload(data.root, "gs://shards/set")
        assert_equal(read(Dataset.open("gs://shards/set")), expected)


def test_what_the_first_batch_waits_for_is_known(data, s3, tmp_path):
    """Each shard holds twelve samples, each batch eight."""
    upload(data.root, f"{s3}/set")
    remote, cached = Dataset.open(f"{s3}/set"), ReadOptions(cache=tmp_path)

    def to_fetch(dataset, at, access=None):
        with Loader(dataset, "val", EvalView(crop=16), 8, access=access) as loader:
            loader.set_position(0, at)
            found = loader.to_fetch()
            next(iter(loader))
            return [data.shards("val").index(shard) for shard in found]

    assert to_fetch(data, 1) == []
    assert [to_fetch(remote, at) for at in (0, 1, 2)] == [[0], [0, 1], [1]]
    assert [to_fetch(remote, 0, cached) for _ in range(2)] == [[0], []]
    assert to_fetch(data, 0, ReadOptions(cache=tmp_path / "other")) == [0]


def test_a_bucket_cannot_be_mapped_or_not(data):
    with pytest.raises(UsageError, match=r"s3://somewhere/set: .* leave --no-mmap out"):
        Loader(
            replace(data, url="s3://somewhere/set"), "train", TrainView(12), 7, access=ReadOptions(mmap=False)
        )


def test_shards_are_open_from_their_first_batch_to_their_last_and_two_ahead(data):
    shards = LiveShards(data, "val", ReadOptions(mmap=False))
    descriptors = len(list(Path("/dev/fd").iterdir()))

    def opened():
        return {use.shard for use, *_ in shards._open}

    shards.begin([Use(0, 1, 2), Use(1, 4, 0), Use(6, 7, 1), Use(8, 9, 2)])
    assert opened() == {2, 0}
    assert set(shards.of_batch(0)) == {2}
    assert set(shards.of_batch(1)) == {2, 0}
    shards.done(1)
    assert opened() == {0, 1, 2}
    shards.of_batch(6)
    shards.done(6)
    assert opened() == {1, 2}
    shards.close()
    assert len(list(Path("/dev/fd").iterdir())) <= descriptors


def test_each_epoch_ends_the_fetches_of_the_former(data, tmp_path, monkeypatch):
    events = []

    @contextmanager
    def lease(self, shard, over):
        events.append(over)
        yield str(self.store.local / shard.name)

    monkeypatch.setattr(Cache, "lease", lease)
    shards = LiveShards(data, "val", ReadOptions(cache=tmp_path))
    for _ in range(2):
        shards.begin([Use(0, 1, 0)])
        shards.of_batch(0)[0].result()
    assert [over.is_set() for over in events] == [True, False]
    shards.close()
    assert events[1].is_set()


def test_an_index_that_the_manifest_does_not_know_is_an_error(tmp_path):
    data = write_dataset(tmp_path / "d", {"train": tiny_images(12)}, 16, 2)
    path = data.indexes("train")[0]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["v1.2 5", *lines[1:-1], ""]))
    with (
        Loader(data, "train", TrainView(12), 12) as loader,
        pytest.raises(UsageError, match=r"lists 5 samples, but the manifest says 6"),
    ):
        list(loader)


def test_a_cache_must_hold_what_the_processes_of_a_host_use_at_once(data, tmp_path):
    size = sum(shard.bytes for shard in data.manifest.shards)
    place = Placement(0, 2, local_world_size=2)
    few, enough = (ReadOptions(cache=tmp_path, cache_limit=limit) for limit in (1000, 3 * size))
    with pytest.raises(UsageError, match="--cache-limit of 1,000 bytes is too little for train"):
        Loader(data, "train", TrainView(12), 8, placement=place, access=few)
    Loader(data, "train", TrainView(12), 7, access=enough).close()
    folder = tmp_path / "alexnet-shards"
    folder.mkdir()
    (folder / "notes").write_bytes(bytes(3 * size))
    with pytest.raises(UsageError, match=rf"holds {3 * size:,} bytes of other programs; give at least "):
        Loader(data, "train", TrainView(12), 7, access=enough)
