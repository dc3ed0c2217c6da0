import gc
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from helpers.folders import draw_image, encoded, members
from hypothesis import given, strategies as st

from pipeline.dataset.index import index_path, keys_in, label_in, read_index, to_index
from pipeline.dataset.manifest import Shard
from pipeline.dataset.tar import _header, check_sizes, describe, write_shard
from pipeline.errors import UsageError
from pipeline.storage.open import open_store

# Sizes around a tar's block of 512 bytes; keys up to the maximal length.
SAMPLES = [
    (f"k{number}", bytes([number]) * size, number * 111)
    for number, size in enumerate([1, 511, 512, 513, 1024, 30_000])
] + [("x" * 60 + "~0123456789abcdef-12", b"long key", 7), ("%C3%A9%2E+=@~-_", b"odd key", 8)]


def write(path, samples=SAMPLES, label_width=4):
    with write_shard(path, label_width) as writer:
        for key, data, label in samples:
            writer.add(key, data, label)
    return path


@pytest.fixture
def tar(tmp_path):
    return write(tmp_path / "train-000000.tar")


def test_pythons_reader_gives_back_every_byte_in_order(tar):
    expected = []
    for key, data, label in SAMPLES:
        expected += [(f"{key}.jpg", data), (f"{key}.cls", b"%04d" % label)]
    assert members(tar) == expected


def test_headers_hold_nothing_of_the_clock_user_or_machine(tar):
    with tarfile.open(tar) as archive:
        for info in archive:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
            assert info.mode == 0o644
            assert info.type == tarfile.REGTYPE
            assert info.pax_headers == {}
        assert archive.pax_headers == {}


def test_the_archive_is_plain_ustar(tar):
    data = tar.read_bytes()
    at = kinds = 0
    while data[at : at + 512].strip(b"\0"):
        header = data[at : at + 512]
        assert header[257:265] == b"ustar\x0000"  # POSIX, not GNU's "ustar  "
        assert header[156:157] == b"0"  # a regular file: no PAX (x, g) and no GNU (L) header
        at += 512 + -(-int(header[124:135], 8) // 512) * 512
        kinds += 1
    assert kinds == 2 * len(SAMPLES)
    assert len(data) - at >= 1024  # ends with two zero blocks
    assert not data[at:].strip(b"\0")


def test_the_index_is_what_tarfile_finds(tar):
    with tarfile.open(tar) as archive:
        found = [(info.name.split(".")[1], info.offset_data, info.size, info.name) for info in archive]
    lines = [" ".join(map(str, (*jpg, *cls))) for jpg, cls in zip(found[::2], found[1::2], strict=True)]
    assert index_path(tar).name == "train-000000.idx"
    assert index_path(tar).read_text() == "\n".join([f"v1.2 {len(SAMPLES)}", *lines]) + "\n"


def test_the_index_is_what_dalis_own_tool_writes(tar, tmp_path):
    spec = importlib.util.find_spec("wds2idx")
    if spec is None:
        pytest.skip("DALI's wds2idx.py is not installed")
    other = tmp_path / "other.idx"
    # The offsets come from GNU tar, which escapes unusual characters; keys contain none of these.
    subprocess.run([sys.executable, spec.origin, tar, other], check=True, capture_output=True)
    assert index_path(tar).read_text() == other.read_text()


def test_the_index_reads_back(tar):
    stored = tar.read_bytes()
    for sample, (key, data, label) in zip(read_index(index_path(tar)), SAMPLES, strict=True):
        assert list(sample) == ["jpg", "cls"]
        offset, size, name = sample["jpg"]
        assert (stored[offset : offset + size], name) == (data, f"{key}.jpg")
        offset, size, name = sample["cls"]
        assert (stored[offset : offset + size], name) == (b"%04d" % label, f"{key}.cls")


def test_the_index_tells_the_keys(tar):
    store, shard = open_store(tar.parent), describe(tar.parent, tar, len(SAMPLES))
    assert keys_in(store, shard) == [key for key, _, _ in SAMPLES]
    index_path(tar).write_text("v1.2 2\n")
    with pytest.raises(UsageError, match="not a complete v1"):
        keys_in(store, shard)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset does not close its tars
def test_webdataset_reads_images_and_integer_labels(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    images = [encoded(draw_image(k)) for k in range(5)]
    tar = write(tmp_path / "val-000000.tar", [(f"p{k}", data, k * 100) for k, data in enumerate(images)])
    found = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    gc.collect()
    assert [sample["__key__"] for sample in found] == [f"p{k}" for k in range(5)]
    assert [sample["cls"] for sample in found] == [0, 100, 200, 300, 400]
    assert all(type(sample["cls"]) is int for sample in found)
    assert [sample["jpg"] for sample in found] == images


@pytest.mark.parametrize(
    ("width", "label", "stored"), [(4, 0, b"0000"), (4, 999, b"0999"), (5, 12345, b"12345")]
)
def test_labels_have_one_width(tmp_path, width, label, stored):
    tar = write(tmp_path / "a.tar", [("k", b"x", label)], width)
    assert members(tar)[1] == ("k.cls", stored)


def test_equal_samples_give_equal_bytes(tar, tmp_path):
    again = write(tmp_path / "again.tar")
    assert again.read_bytes() == tar.read_bytes()
    assert index_path(again).read_bytes() == index_path(tar).read_bytes()


def test_an_empty_shard_leaves_no_file(tmp_path):
    write(tmp_path / "a.tar", [])
    assert list(tmp_path.iterdir()) == []


def test_a_failing_shard_leaves_no_file(tmp_path):
    def stop():
        with write_shard(tmp_path / "a.tar", 4) as writer:
            writer.add("k", b"x", 1)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        stop()
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_needs_more_than_plain_ustar_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="does not fit into a USTAR header"):
        write(tmp_path / "a.tar", [("x" * 97, b"x", 1)])
    assert list(tmp_path.iterdir()) == []


def test_describe(tar, tmp_path):
    sha256 = subprocess.run(["sha256sum", tar], check=True, capture_output=True, text=True).stdout[:64]
    expected = Shard("train-000000.tar", len(SAMPLES), tar.stat().st_size, sha256)
    assert describe(tmp_path, tar, len(SAMPLES)) == expected


def test_check_sizes(tar, tmp_path):
    store, shard = open_store(tmp_path), describe(tmp_path, tar, len(SAMPLES))
    check_sizes(store, [shard])
    size = tar.stat().st_size
    with tar.open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(
        UsageError, match=f"{tar}: {size - 1:,} bytes, but the manifest says {size:,}.*verify {tmp_path}"
    ):
        check_sizes(store, [shard])
    index_path(tar).unlink()
    with pytest.raises(UsageError, match=f"{index_path(tar)}: missing"):
        check_sizes(store, [shard])
    tar.unlink()
    with pytest.raises(UsageError, match=f"{tar}: missing"):
        check_sizes(store, [shard])


GOOD = "v1.2 2\njpg 512 100 a.jpg cls 1536 4 a.cls\njpg 2560 100 b.jpg cls 3584 4 b.cls\n"


def test_read_index_of_what_is_written_by_hand(tmp_path):
    path = tmp_path / "a.idx"
    path.write_text(GOOD)
    assert read_index(path) == [
        {"jpg": (512, 100, "a.jpg"), "cls": (1536, 4, "a.cls")},
        {"jpg": (2560, 100, "b.jpg"), "cls": (3584, 4, "b.cls")},
    ]


def test_to_index():
    assert to_index(GOOD.splitlines()[1:]).decode() == GOOD
    assert to_index([]) == b"v1.2 0\n"


@pytest.mark.parametrize(
    ("data", "label"), [(b"0349", 349), (b"7", 7), (b'{"a": 12, "label": 30', 30), (b"\0\n 00", 0)]
)
def test_a_label_is_the_digits_at_the_end(data, label):
    assert label_in(data) == label


@pytest.mark.parametrize("text", [GOOD[:cut] for cut in range(len(GOOD))], ids=range(len(GOOD)))
def test_an_index_cut_anywhere_is_refused(tmp_path, text):
    path = tmp_path / "a.idx"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"a\.idx: not a complete v1\.2 index"):
        read_index(path)


@pytest.mark.parametrize(
    "data",
    [
        b"v1.1" + GOOD.encode()[4:],
        b"v1.2 3" + GOOD.encode()[6:],
        b"v1.2 two" + GOOD.encode()[6:],
        GOOD.replace("512", "x").encode(),
        b"v1.2 -1",
        json.dumps({}).encode(),
        bytes(range(256)),
    ],
)
def test_what_is_no_index_is_refused(tmp_path, data):
    path = tmp_path / "a.idx"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="prepare the dataset again"):
        read_index(path)


def test_a_missing_index_is_refused():
    with pytest.raises(UsageError, match="No such file"):
        read_index(Path("/nowhere/a.idx"))


@given(st.text("abcXYZ019_%-+=@~", min_size=1, max_size=96), st.integers(0, 8**11 - 1))
def test_headers_are_those_of_tarfile(stem, size):
    info = tarfile.TarInfo(f"{stem}.jpg")
    info.size, info.mode = size, 0o644
    assert _header(info.name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_tar_ends_as_those_of_tarfile_end(tmp_path):
    for count in range(1, 12):
        samples = [(f"k{k}", bytes(k * 700), k) for k in range(count)]
        write(tmp_path / "a.tar", samples)
        expected = io.BytesIO()
        with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, jpeg, label in samples:
                for name, data in ((f"{key}.jpg", jpeg), (f"{key}.cls", b"%04d" % label)):
                    info = tarfile.TarInfo(name)
                    info.size, info.mode = len(data), 0o644
                    tar.addfile(info, io.BytesIO(data))
        assert (tmp_path / "a.tar").read_bytes() == expected.getvalue()


def test_other_files_in_the_folder_are_no_matter_and_suffixes_may_be_of_any_case(tmp_path):
    tar = write(tmp_path / "a.TAR")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    check_sizes(open_store(tmp_path), [describe(tmp_path, tar, len(SAMPLES))])
