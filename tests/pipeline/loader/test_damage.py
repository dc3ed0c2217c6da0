"""The loader's error names the damaged sample, on every rank and for every way of reading."""

import os
import resource

import numpy as np
import pytest
import torch
from helpers.folders import overwrite
from helpers.synthetic import tiny_images, write_dataset

from pipeline import EvalView, Loader, Placement, ReadOptions, RunError, TrainView
from pipeline.dataset.index import parse_index, read_index

SAMPLES = 40


@pytest.fixture
def data(tmp_path):
    images = tiny_images(SAMPLES, size=24)
    return write_dataset(tmp_path / "d", {"train": images, "val": images}, 24, 3)


@pytest.fixture(params=["threads", pytest.param("dali", marks=pytest.mark.dali)])
def backend(request):
    return request.param


def find(dataset, split, number):
    """Find the tar that holds sample `number`, and the sample's members in its index."""
    for tar, index in zip(dataset.tars(split), dataset.indexes(split), strict=True):
        for sample in parse_index(index.read_bytes()):
            if sample["jpg"].name == f"{split}-{number}.jpg":
                return tar, sample
    raise AssertionError


def read_all(dataset, split, rank=0, world_size=1, access=None, backend="threads"):
    view = TrainView(16) if split == "train" else EvalView(crop=16)
    place = Placement(rank, world_size, threads=1)
    size = 4 * world_size if split == "train" else 4
    with Loader(dataset, split, view, size, placement=place, access=access, backend=backend) as loader:
        return sum(len(batch.labels) for batch in loader)


@pytest.mark.parametrize(
    ("split", "number", "world_size", "mmap"),
    [("train", 0, 1, True), ("train", 39, 2, False), ("val", 17, 1, False), ("val", 39, 3, True)],
)
def test_the_rank_that_meets_a_bad_sample_names_it(data, split, number, world_size, mmap, backend):
    tar, sample = find(data, split, number)
    _, offset, size = sample["jpg"]
    overwrite(tar, offset, b"GIF89a--")
    errors = []
    for rank in range(world_size):
        try:
            read_all(data, split, rank, world_size, ReadOptions(mmap=mmap), backend)
        except RunError as error:
            errors.append(str(error))
    (error,) = errors
    assert error.startswith(f"{tar}: the sample {split}-{number} (bytes {offset:,} to {offset + size:,})")
    assert f"`alexnet-prep verify {data.url}`" in error
    assert "\n" not in error


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda data, _: read_index(data.store, data.shards("train")[0]), id="index"),
        pytest.param(lambda data, _: read_all(data, "train", access=ReadOptions(mmap=False)), id="read"),
        pytest.param(lambda data, root: read_all(data, "train", access=ReadOptions(cache=root)), id="cache"),
    ],
)
def test_a_limit_of_open_files_is_not_blamed_on_the_dataset(data, tmp_path, call):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)  # the lowest number that is free
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(RunError, match=r"^too many open files: this process may have "):
            call(data, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_that_went_bad_in_the_cache_is_brought_again(data, tmp_path):
    access = ReadOptions(cache=tmp_path / "cache")
    read_all(data, "train", access=access)
    source, sample = find(data, "train", 7)
    (copy,) = access.cache.rglob(source.name)
    overwrite(copy, sample["jpg"].offset, b"GIF89a--")
    assert read_all(data, "train", access=access) == SAMPLES
    assert copy.read_bytes() == source.read_bytes()


def test_rot_while_a_copy_is_used_names_the_copy(data, tmp_path):
    """The source may be intact, so the message says to delete the copy."""
    access = ReadOptions(cache=tmp_path / "cache")
    source, sample = find(data, "train", 7)
    with Loader(data, "train", TrainView(16), 4, access=access) as loader:
        list(loader)
        (copy,) = access.cache.rglob(source.name)
        checked = copy.stat().st_mtime_ns
        overwrite(copy, sample["jpg"].offset, b"GIF89a--")
        os.utime(copy, ns=(checked, checked))
        with pytest.raises(RunError, match=rf"^{copy}: the sample train-7 .* is damaged: ") as caught:
            list(loader)
    assert f"delete this cached copy of {source}, and it is fetched again" in str(caught.value)


@pytest.mark.parametrize(
    ("digits", "reason"),
    [
        (b"0003", "its label is 3, but the manifest names 3 classes"),
        (b"00x2", "its label is b'00x2', not a number"),
    ],
)
def test_a_label_that_is_none_is_named(data, digits, reason):
    tar, sample = find(data, "val", 20)
    overwrite(tar, sample["cls"].offset, digits)
    with pytest.raises(RunError, match=rf"the sample val-20 .*{reason}"):
        read_all(data, "val")


def test_an_error_of_no_sample_is_still_one_line(data, backend):
    """A tar is deleted after the dataset was opened."""
    tar = data.tars("train")[1]
    tar.unlink()
    with pytest.raises(RunError, match=rf"^{tar}: cannot be read: No such file .*alexnet-prep verify"):
        read_all(data, "train", backend=backend)


def test_an_abandoned_batch_that_is_damaged_shifts_no_other(data, backend):
    """The second batch is under way when the iteration is left after the first."""
    tar, sample = find(data, "val", 5)
    with Loader(data, "val", EvalView(crop=16), 4, backend=backend) as loader:
        expected = {
            key: image.clone()
            for batch in loader
            for key, image in zip(batch.keys, batch.images, strict=True)
        }
        overwrite(tar, sample["jpg"].offset, b"GIF89a--")
        for _ in loader:
            break
        loader.set_position(0, 2)
        for batch in loader:
            for key, image in zip(batch.keys, batch.images, strict=True):
                assert torch.equal(image, expected[key])


@pytest.mark.dali
@pytest.mark.parametrize("words", ["CUDA allocation failed", "Can't allocate 1000 bytes on device 0."])
def test_too_little_memory_is_blamed_on_no_sample(data, monkeypatch, words):
    with Loader(data, "train", TrainView(16), 4, backend="dali") as loader:
        batches = iter(loader)
        next(batches)
        monkeypatch.setattr(loader._maker, "_pipe", NoMemory(loader._maker._pipe, words))
        with pytest.raises(RunError, match=r"^the loader is out of memory: .*use smaller batches"):
            list(batches)


class NoMemory:
    """A DALI pipeline whose GPU has no memory left when it decodes."""

    def __init__(self, pipe, words):
        self.feed_input, self.schedule_run, self.words = pipe.feed_input, pipe.schedule_run, words

    def outputs(self, stream=None):
        raise RuntimeError(f"Error in decoders.image encountered:\n{self.words}")


def test_random_damage_always_names_the_sample(data):
    """Change one random byte of the first image's header at a time: all batches come, or the one error."""
    tar, sample = find(data, "train", 0)
    original = tar.read_bytes()
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        broken = bytearray(original)
        broken[sample["jpg"].offset + rng.integers(0, 620)] ^= int(rng.integers(1, 256))
        tar.write_bytes(broken)
        try:
            seen.add(read_all(data, "train"))
        except RunError as error:
            seen.add("named" if "train-0 (bytes" in str(error) else str(error))
    assert seen == {SAMPLES, "named"}
