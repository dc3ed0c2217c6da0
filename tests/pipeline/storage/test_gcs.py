"""A bucket of Google Cloud Storage as a store, against its emulator."""

import pytest
from helpers.buckets import start_gcs
from helpers.folders import place

from pipeline.storage.base import ByteRange, File
from pipeline.storage.open import open_store


@pytest.fixture(scope="module")
def server():
    with start_gcs("images") as address:
        yield address


def test_a_bucket_of_googles_works_as_a_store(server, tmp_path, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    store = open_store("gs://images/set")
    assert store.names() == set()
    store.write("train/a.bin", b"0123456789")
    with monkeypatch.context() as patch:  # the server's checksum is enough: nothing is downloaded again
        patch.setattr(store, "copy_to", lambda *_: pytest.fail("downloaded"))
        store.upload(place(tmp_path / "b.tar", bytes(500_000)), "b.tar")
    assert not (tmp_path / "b.tar").exists()
    assert store.names() == {"train", "b.tar"}
    assert store.walk() == ([File("b.tar", 500_000), File("train/a.bin", 10)], ["train"])
    found = list(
        store.read_many([ByteRange("train/a.bin", 2, 3), ByteRange("gone"), ByteRange("train/a.bin", 8, 5)])
    )
    assert found[0] == b"234"
    assert isinstance(found[1], FileNotFoundError)
    assert "2 of 5 bytes at offset 8" in str(found[2])
    with store.open("train/a.bin") as file:
        file.seek(4)
        assert file.read() == b"456789"
    assert store.read(ByteRange("b.tar")) == bytes(500_000)
    store.remove("train")
    assert store.names() == {"b.tar"}
