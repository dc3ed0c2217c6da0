import errno

import pytest
from helpers.folders import place

from pipeline.errors import RunError, UsageError
from pipeline.sources.listers.hub import look_for, reading, split_of
from pipeline.storage.open import open_store


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/validation-00000-of-00014.parquet", "val"),
        ("default/validation/0000.parquet", "val"),
        ("imagenet_dev12.tar", "val"),
        ("ILSVRC2012_VALID.tgz", "val"),
        ("testing/0.tar", "test"),
        ("test/train-0.tar", "train"),
        ("test/val/0.tar", "val"),
        ("0000.parquet", "train"),
        ("retrieval/latest/contest.tar", "train"),
    ],
)
def test_splits_are_words_of_names(path, split):
    assert split_of(path) == split


def wanted(name):
    return name.endswith(".tar")


def test_files_are_found_in_the_root_and_below(tmp_path):
    store = open_store(tmp_path)
    assert look_for(store, wanted) == (None, False)
    place(tmp_path / "a" / "b" / "c.tar")
    assert look_for(store, wanted) == ("a/b/c.tar", False)
    place(tmp_path / "z.tar")
    assert look_for(store, wanted) == ("z.tar", False)


def test_hidden_files_and_folders_of_that_name_are_none(tmp_path):
    place(tmp_path / ".a.tar")
    place(tmp_path / ".git" / "a.tar")
    (tmp_path / "b.tar").mkdir()
    assert look_for(open_store(tmp_path), wanted) == (None, False)
    place(tmp_path / "b.tar" / "part-0.tar")
    assert look_for(open_store(tmp_path), wanted) == ("b.tar/part-0.tar", False)


def test_images_count_in_folders_alone(tmp_path):
    place(tmp_path / "a.tar")
    place(tmp_path / "logo.png")
    assert look_for(open_store(tmp_path), wanted) == ("a.tar", False)
    place(tmp_path / "train" / "cat" / "1.JPEG")
    assert look_for(open_store(tmp_path), wanted) == ("a.tar", True)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (FileNotFoundError(2, "No such file"), UsageError, "a.tar: it does not exist any more; restore it"),
        (OSError("bad magic\n number"), UsageError, r"a.tar: no complete tar \(bad magic number\); download"),
        (EOFError("ended"), UsageError, r"a.tar: no complete tar \(ended\); download it again"),
        (OSError(errno.EIO, "Input/output error"), RunError, "cannot read a.tar: Input/output error; run"),
    ],
)
def test_errors_in_reading_are_one_line(error, expected, message):
    with pytest.raises(expected, match=f"^{message}"), reading("a.tar", "tar", EOFError):
        raise error


def test_other_errors_pass():
    with pytest.raises(KeyError), reading("a.tar", "tar", EOFError):
        raise KeyError("a bug")
    with pytest.raises(UsageError, match=r"^said already$"), reading("a.tar", "tar", EOFError):
        raise UsageError("said already")
