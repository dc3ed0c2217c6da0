import pytest
from helpers.buckets import upload
from helpers.synthetic import tiny_images, write_dataset

from pipeline import Dataset, RunError, verify_checksums


@pytest.fixture
def data(tmp_path):
    images = tiny_images(20)
    return write_dataset(tmp_path / "d", {"train": images, "val": images}, 16, 4)


def flip(path, at=700):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_what_was_written_passes_and_progress_counts_bytes(data):
    seen = []
    verify_checksums(data, lambda done, total: seen.append((done, total)))
    total = sum(path.stat().st_size for split in ("train", "val") for path in data.tars(split))
    assert seen[-1] == (total, total)
    assert len(seen) == 8


def test_shards_that_changed_are_named(data):
    flip(data.tars("val")[2])
    with pytest.raises(
        RunError, match=r"1 of 8 shards do not match the manifest's checksums: val/val-000002\.tar; "
    ):
        verify_checksums(data)
    for tar in data.tars("train"):
        flip(tar)
    with pytest.raises(RunError, match=r"5 of 8 .*: train/train-000000\.tar, .*train-000002\.tar …; "):
        verify_checksums(data)


def test_a_bucket_is_checked_too(data, s3):
    flip(data.tars("train")[1])
    upload(data.root, f"{s3}/set")
    with pytest.raises(RunError, match=rf"{s3}/set: 1 of 8 .*train-000001"):
        verify_checksums(Dataset.open(f"{s3}/set"))
