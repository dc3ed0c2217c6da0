import pytest
from helpers.folders import overwrite
from helpers.synthetic import tiny_images, write_dataset

from pipeline import RunError, verify_checksums


@pytest.fixture
def data(tmp_path):
    images = tiny_images(8)
    return write_dataset(tmp_path / "d", {"train": images, "val": images}, 16, 4)


def test_what_was_written_passes_and_progress_counts_bytes(data):
    seen = []
    verify_checksums(data, lambda done, total: seen.append((done, total)))
    total = sum(path.stat().st_size for path in data.root.rglob("*.tar"))
    assert seen[-1] == (total, total)
    assert len(seen) == 8


def test_shards_that_changed_are_named(data):
    for number, tar in enumerate([data.tars("val")[2], *data.tars("train")], 1):
        overwrite(tar, 700, b"damaged")
        first = "val/val-000002.tar" if number == 1 else "train/train-000000.tar"
        with pytest.raises(RunError, match=rf"{number} of 8 shards do not match .*: {first}.*; "):
            verify_checksums(data)
    with pytest.raises(RunError, match=r"train-000000\.tar, .*train-000002\.tar …; "):
        verify_checksums(data)
