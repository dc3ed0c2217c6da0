import os
import pickle
import sys
from pathlib import Path

import pytest
import s3fs
from helpers.folders import is_root, place, refused, tree

from pipeline.errors import RunError
from pipeline.storage.base import ByteRange, File
from pipeline.storage.local import LocalStore
from pipeline.storage.open import open_store


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    """An empty folder, then an empty prefix of a bucket: each test runs on both."""
    if request.param == "local":
        return open_store(tmp_path / "store")
    return open_store(request.getfixturevalue("s3") + "/some/prefix")


def test_paths_and_file_urls_are_local(tmp_path):
    for url in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        opened = open_store(url)
        assert isinstance(opened, LocalStore)
        assert opened.local == tmp_path


def test_what_is_written_is_read(store):
    assert store.names() == set()
    assert not store.is_folder("a")
    assert not store.is_file("a")
    refused(lambda: store.read(ByteRange("a")), "No such file", error=OSError)
    store.write("a/b.bin", bytes(range(256)))
    store.write("empty", b"")
    assert store.is_file("a/b.bin")
    assert store.is_file("empty")
    assert not store.is_file("a")
    assert store.is_folder("a")
    assert store.names() == {"a", "empty"}
    assert store.names("a") == {"b.bin"}
    assert store.size("a/b.bin") == 256
    assert store.read(ByteRange("a/b.bin")) == bytes(range(256))
    assert store.read(ByteRange("a/b.bin", 250)) == bytes(range(250, 256))
    assert store.read(ByteRange("a/b.bin", 3, 4)) == bytes([3, 4, 5, 6])
    assert store.read(ByteRange("a/b.bin", 3, 0)) == b""
    assert store.read(ByteRange("empty")) == b""
    store.write("a/b.bin", b"anew")
    assert store.read(ByteRange("a/b.bin")) == b"anew"
    with store.as_local_path("a/b.bin") as path:
        assert path.name == "b.bin"
        assert path.read_bytes() == b"anew"
    copy = pickle.loads(pickle.dumps(store))
    assert type(copy) is type(store)
    assert copy.read(ByteRange("a/b.bin")) == b"anew"


def test_many_spans_come_in_order_and_bad_ones_as_errors(store):
    store.write("a", b"0123456789")
    store.write("b", b"abc")
    spans = [("b",), ("a", 2, 3), ("gone",), ("a", 8, 5), ("a", 0, 1)]
    found = list(store.read_many([ByteRange(*span) for span in spans]))
    assert found[:2] == [b"abc", b"234"]
    assert isinstance(found[2], FileNotFoundError)
    assert isinstance(found[3], OSError)
    assert "2 of 5 bytes at offset 8" in str(found[3])
    assert found[4] == b"0"


@pytest.mark.parametrize("read_ahead", [True, False])
def test_open_files_can_be_sought(store, read_ahead):
    store.write("a", b"0123456789")
    with store.open("a", read_ahead) as file:
        file.seek(4)
        assert file.read(2) == b"45"
        file.seek(0)
        assert file.read() == b"0123456789"


def test_walking_lists_files_with_sizes_but_not_below_hidden_folders(store):
    for name in ("train/ant/1.jpg", "train/bee/deep/2.jpg", ".hidden", "train/.git/x", "top.txt"):
        store.write(name, b"x" * len(name))
    files, folders = store.walk()
    names = [".hidden", "top.txt", "train/ant/1.jpg", "train/bee/deep/2.jpg"]
    assert sorted(files) == [File(name, len(name)) for name in names]
    assert sorted(folders) == ["train", "train/.git", "train/ant", "train/bee", "train/bee/deep"]
    assert store.walk("train/ant") == ([File("train/ant/1.jpg", 15)], [])


def test_remove_deletes_files_and_folders_and_ignores_missing_ones(store):
    for name in ("keep", "gone/a", "gone/b/c", "file"):
        store.write(name, b"x")
    for name in ("gone", "file", "never-there"):
        store.remove(name)
    assert store.names() == {"keep"}


# Local folders only


def test_links_are_followed_but_not_in_circles(tmp_path):
    place(tmp_path / "elsewhere" / "more" / "1.jpg")
    place(tmp_path / "s" / "ant" / "2.jpg")
    (tmp_path / "s" / "ant" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "s" / "bee").symlink_to(tmp_path / "s" / "ant")
    (tmp_path / "s" / "ant" / "loop").symlink_to(tmp_path / "s" / "ant")
    files, _ = open_store(tmp_path / "s").walk()
    assert [file.path for file in files] == ["ant/2.jpg", "ant/more/1.jpg", "bee/2.jpg", "bee/more/1.jpg"]


@pytest.mark.parametrize("target", ["nowhere", "gone.jpg", "x" * 256])
def test_a_link_to_nowhere_is_a_file_of_unknown_size(tmp_path, target):
    (tmp_path / "gone.jpg").symlink_to(target)
    assert open_store(tmp_path).walk() == ([File("gone.jpg", -1)], [])


def test_only_plain_files_are_listed(tmp_path):
    place(tmp_path / "1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert [file.path for file in open_store(tmp_path).walk()[0]] == ["1.jpg"]


@pytest.mark.skipif(is_root(), reason="root may read anything")
def test_an_unreadable_folder_is_named(tmp_path):
    place(tmp_path / "deep" / "1.jpg")
    (tmp_path / "deep").chmod(0)
    try:
        refused(open_store(tmp_path).walk, f"cannot read {tmp_path}/deep: Permission denied")
    finally:
        (tmp_path / "deep").chmod(0o755)


def test_leftovers_are_removed_at_any_depth_and_nothing_else(tmp_path):
    for name in (".writing-1-a", "train/.writing-2-b", "train/a.tar", ".work/results/.writing-3-c"):
        place(tmp_path / name)
    LocalStore(str(tmp_path)).remove_leftovers()
    assert tree(tmp_path).keys() == {"train/a.tar"}


def test_a_file_below_a_file_cannot_be_written(tmp_path):
    place(tmp_path / "file")
    store = open_store(tmp_path)
    refused(lambda: store.write("file/below", b""), "cannot create the folder", error=RunError)


# Buckets only


def test_upload_deletes_the_local_file(s3, tmp_path):
    file = place(tmp_path / "shard.tar", os.urandom(3_000_000))
    data = file.read_bytes()
    store = open_store(f"{s3}/out")
    store.upload(file, "train/shard.tar")
    assert not file.exists()
    assert store.read(ByteRange("train/shard.tar")) == data


def test_an_upload_in_parts_is_read_back(s3, tmp_path, monkeypatch):
    store = open_store(s3)
    put = store._fs.put_file
    monkeypatch.setattr(store._fs, "put_file", lambda a, b: put(a, b, chunksize=5 * 2**20))
    file = place(tmp_path / "large", os.urandom(11 * 2**20))
    data = file.read_bytes()
    store.upload(file, "large")
    assert "-" in store._fs.info(f"{s3}/large")["ETag"]  # not an MD5
    assert store.read(ByteRange("large")) == data


def test_an_upload_that_arrives_damaged_is_tried_again_and_then_refused(s3, tmp_path, monkeypatch):
    store = open_store(s3)
    tries = []

    def damage(file, name):
        tries.append(name)
        store._fs.pipe_file(name, b"damaged" if len(tries) < good_at else Path(file).read_bytes())

    monkeypatch.setattr(store._fs, "put_file", damage)
    good_at = 3
    store.upload(place(tmp_path / "a", b"sevenby"), "a")
    assert len(tries) == 3
    assert store.read(ByteRange("a")) == b"sevenby"
    tries.clear()
    good_at = 99
    file = place(tmp_path / "b", b"sevenby")
    message = f"{s3}/b: the stored object differed from the local file after each of 3 uploads"
    refused(lambda: store.upload(file, "b"), message, error=RunError)
    assert file.exists()


def test_a_missing_bucket_is_one_line(s3):
    store = open_store("s3://no-such-bucket-here/x")
    refused(lambda: store.write("a", b""), "cannot write s3://no-such-bucket-here/x/a: ")
    assert store.names() == set()


@pytest.fixture
def connect_anew():
    """fsspec keeps its clients of a process; they are made anew from the environment, here and afterwards."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_server_that_does_not_answer_is_a_run_error(s3, monkeypatch, connect_anew):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    call = open_store("s3://bucket/x").names
    refused(call, "cannot list s3://bucket/x: ", "check the network", error=RunError)


def test_missing_credentials_are_a_usage_error(s3, monkeypatch, tmp_path, connect_anew):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    store = open_store("s3://bucket/x")
    message = "cannot write s3://bucket/x/a: no credentials"
    refused(lambda: store.write("a", b""), message, "AWS_ACCESS_KEY_ID")


def test_unknown_protocols_and_missing_packages_are_one_line(monkeypatch):
    refused(open_store("nonsense://bucket/x").names, "nonsense://bucket/x: unknown protocol")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    refused(open_store("s3a://bucket/x").names, "pip install 'alexnet-toolkit[s3]'")


def test_a_server_that_fails_is_not_an_empty_one(s3, monkeypatch):
    store = open_store(s3)
    store.write("manifest.json", b"{}")

    def fail(*_, **__):
        raise OSError(5, "the server is busy")

    monkeypatch.setattr(store._fs, "info", fail)
    for ask in (store.is_file, store.is_folder):
        message = f"cannot look up {s3}/manifest.json: OSError: "
        refused(lambda ask=ask: ask("manifest.json"), message, "the server is busy", error=RunError)


def test_a_server_that_fails_while_a_file_is_read_is_one_line(s3, monkeypatch):
    store = open_store(s3)
    store.write("a.tar", bytes(100_000))
    with store.open("a.tar") as file:
        monkeypatch.setattr(file.raw._file, "read", lambda _: 1 / 0)
        refused(file.read, f"cannot read {s3}/a.tar: ZeroDivisionError", error=RunError)
