"""The loader's error names the damaged sample, on every rank and for every way of reading."""

import re

import numpy as np
import pytest
from helpers.synthetic import tiny_images, write_dataset

from pipeline import EvalView, Loader, Placement, ReadOptions, RunError, TrainView
from pipeline.dataset.index import index_path, read_index
from pipeline.loader import order

SAMPLES = 40


@pytest.fixture
def data(tmp_path):
    images = tiny_images(SAMPLES, size=24)
    return write_dataset(tmp_path / "d", {"train": images, "val": images}, 24, 3)


def overwrite(dataset, split, number, extension, at, content):
    """Write `content` into one member of a sample, `at` bytes after its start.

    Returns the tar, and the byte offset and size of the sample's image.
    """
    for tar in dataset.tars(split):
        for sample in read_index(index_path(tar)):
            offset, _, name = sample[extension]
            if name == f"{split}-{number}.{extension}":
                with tar.open("r+b") as file:
                    file.seek(offset + at)
                    file.write(content)
                return tar, *sample["jpg"][:2]
    raise AssertionError


def read_all(dataset, split, rank=0, world_size=1, access=None):
    view = TrainView(16) if split == "train" else EvalView(crop=16)
    place = Placement(rank, world_size, threads=1)
    with Loader(dataset, split, view, 4, placement=place, access=access) as loader:
        return sum(len(batch.labels) for batch in loader)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("number", [0, 17, 39])
def test_the_rank_that_meets_a_bad_sample_names_it(data, split, number, world_size):
    tar, offset, size = overwrite(data, split, number, "jpg", 0, bytes(8))
    errors = []
    for rank in range(world_size):
        try:
            read_all(data, split, rank, world_size)
        except RunError as error:
            errors.append(str(error))
    # A training epoch leaves a few samples out; the damaged one may be among them.
    assert len(errors) == 1 or (split == "train" and not errors and SAMPLES % (4 * world_size))
    for error in errors:
        assert error.startswith(f"{tar}: the sample {split}-{number} (bytes {offset:,} to {offset + size:,})")
        assert f"`alexnet-prep verify {data.url}`" in error
        assert "\n" not in error


@pytest.mark.parametrize("mmap", [True, False])
def test_it_is_named_however_it_was_read(data, mmap):
    overwrite(data, "train", 7, "jpg", 0, b"GIF89a--")
    with pytest.raises(RunError, match=r"d/train/train-000000\.tar: the sample train-7 .* is damaged: "):
        read_all(data, "train", access=ReadOptions(mmap=mmap))


def test_one_that_went_bad_in_the_cache_is_brought_again(data, tmp_path):
    cache, source = tmp_path / "cache", data.tars("train")[0]
    read_all(data, "train", access=ReadOptions(cache=cache))
    copy = next(p for p in cache.rglob("*") if p.is_file() and p.read_bytes() == source.read_bytes())
    samples = [sample["jpg"] for sample in read_index(index_path(source))]
    offset = next(start for start, _, name in samples if name == "train-7.jpg")
    with copy.open("r+b") as file:
        file.seek(offset)
        file.write(b"GIF89a--")
    assert read_all(data, "train", access=ReadOptions(cache=cache)) == SAMPLES
    assert copy.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("digits", "reason"),
    [
        (b"0003", "its label is 3, but the manifest names 3 classes"),
        (b"00x2", "its label is b'00x2', not a number"),
        (b"0/:2", "its label is b'0/:2', not a number"),  # 2 if digit values were not checked
    ],
)
def test_a_label_that_is_none_is_named(data, digits, reason):
    overwrite(data, "val", 20, "cls", 0, digits)
    with pytest.raises(RunError, match=rf"the sample val-20 .*{reason}"):
        read_all(data, "val")


def test_bytes_that_dali_takes_stop_nothing(data):
    """Damage inside the JPEG's scan decodes to other pixels: only checksums show it."""
    _, _, size = overwrite(data, "train", 5, "jpg", 0, b"")
    overwrite(data, "train", 5, "jpg", size - 12, b"\x55\xaa\x55")
    assert read_all(data, "train") == SAMPLES


def test_an_error_of_no_sample_is_still_one_line(data):
    """A tar is deleted after the dataset was opened."""
    data.tars("train")[1].unlink()
    with pytest.raises(RunError, match=rf"{data.url}: DALI cannot read train: .*") as caught:
        read_all(data, "train")
    assert re.search(r"train-000001\.tar", str(caught.value))


def test_rot_while_a_copy_is_used_names_the_copy(data, tmp_path):
    """The source may be intact, so the message says to delete the copy."""
    cache, source = tmp_path / "cache", data.tars("train")[0]
    with Loader(data, "train", TrainView(16), 4, access=ReadOptions(cache=cache)) as loader:
        opened = loader._shard_files.acquire(
            order.training_share(loader._sizes, 0, 0, 0, 1, 4)
        )  # fetched and checked
        copy = next(p for p in cache.rglob("*.tar") if p.read_bytes() == source.read_bytes())
        for start, size, _ in (sample["jpg"] for sample in read_index(index_path(source))):
            with copy.open("r+b") as file:
                file.seek(start)
                file.write(bytes(size))
        changed = copy.stat()
        loader._shard_files._cache._proven.add((data.shards("train")[0].name, changed.st_mtime_ns))
        with pytest.raises(RunError, match=rf"^{copy}: the sample .* is damaged: ") as caught:
            list(loader)
        opened.release()
    assert f"delete this cached copy of {source}, and it is fetched again" in str(caught.value)


def test_random_damage_always_names_the_sample(data):
    """Change one random byte of the first image's header at a time: all batches come, or the one error."""
    original = data.tars("train")[0].read_bytes()
    rng = np.random.default_rng(0)
    (offset, size, _) = read_index(data.indexes("train")[0])[0]["jpg"]
    seen = set()
    for _ in range(60):
        broken = bytearray(original)
        broken[offset + rng.integers(0, min(size, 620))] ^= int(rng.integers(1, 256))
        data.tars("train")[0].write_bytes(broken)
        try:
            seen.add(read_all(data, "train"))
        except RunError as error:
            seen.add("named" if "train-0 (bytes" in str(error) else str(error))
    assert seen == {SAMPLES, "named"}
