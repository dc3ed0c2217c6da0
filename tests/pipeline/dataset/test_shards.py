import gc
import io
import subprocess
import tarfile

import pytest
from helpers.folders import draw_image, encoded, members, refused
from hypothesis import given, settings, strategies as st

from pipeline.dataset.index import index_path, label_digits, parse_index, read_index, to_index
from pipeline.dataset.manifest import Shard
from pipeline.dataset.shards import _header, check_sizes, describe, write_shard
from pipeline.dataset.tar import Member
from pipeline.errors import UsageError
from pipeline.storage.open import open_store

# Sizes around a tar's block of 512 bytes; keys up to the maximal length.
SAMPLES = [
    (f"k{number}", bytes([number]) * size, number * 111)
    for number, size in enumerate([1, 511, 512, 513, 1024, 30_000])
] + [("x" * 60 + "~0123456789abcdef-12", b"long key", 7), ("%C3%A9%2E+=@~-_", b"odd key", 8)]
STORED = [
    member
    for key, data, label in SAMPLES
    for member in ((f"{key}.jpg", data), (f"{key}.cls", b"%04d" % label))
]


def write(path, samples=SAMPLES, label_width=4):
    with write_shard(path, label_width) as writer:
        for key, data, label in samples:
            writer.add(key, data, label)
    return path


@pytest.fixture
def tar(tmp_path):
    return write(tmp_path / "train-000000.tar")


# Tars


@pytest.mark.parametrize("count", [2, 4, 12, len(STORED)])
def test_a_tar_is_the_ustar_that_tarfile_writes_without_clock_user_or_machine(tmp_path, count):
    write(tmp_path / "a.tar", SAMPLES[: count // 2])
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in STORED[:count]:
            info = tarfile.TarInfo(name)  # mode 0644 and nothing else
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert (tmp_path / "a.tar").read_bytes() == expected.getvalue()


@settings(max_examples=50)
@given(st.text("abcXYZ019_%-+=@~", min_size=1, max_size=96), st.integers(0, 8**11 - 1))
def test_headers_are_those_of_tarfile(stem, size):
    info = tarfile.TarInfo(f"{stem}.jpg")
    info.size, info.mode = size, 0o644
    assert _header(info.name, size) == info.tobuf(tarfile.USTAR_FORMAT)


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


def test_an_empty_shard_leaves_no_file_even_of_an_earlier_run(tar, tmp_path):
    write(tar, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("samples", "error"),
    [
        ([("k", b"x", 1), ("k", None, 1)], TypeError),
        ([("x" * 97, b"x", 1)], ValueError),  # does not fit into a USTAR header
    ],
)
def test_a_failing_shard_leaves_no_file(tmp_path, samples, error):
    with pytest.raises(error):
        write(tmp_path / "a.tar", samples)
    assert list(tmp_path.iterdir()) == []


def test_describe(tar, tmp_path):
    sha256 = subprocess.run(["sha256sum", tar], check=True, capture_output=True, text=True).stdout[:64]
    expected = Shard("train-000000.tar", len(SAMPLES), tar.stat().st_size, sha256)
    assert describe(tmp_path, tar, len(SAMPLES)) == expected


def test_check_sizes(tmp_path):
    tar = write(tmp_path / "a.TAR")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")  # other files are no matter
    store, shard = open_store(tmp_path), describe(tmp_path, tar, len(SAMPLES))
    check_sizes(store, [shard])
    size = tar.stat().st_size
    with tar.open("r+b") as file:
        file.truncate(size - 1)
    message = f"{tar}: {size - 1:,} bytes, but the manifest says {size:,}"
    refused(lambda: check_sizes(store, [shard]), message)
    for path in (index_path(tar), tar):
        path.unlink()
        refused(lambda: check_sizes(store, [shard]), f"{path}: missing")


# Indexes

GOOD = b"v1.2 2\njpg 512 100 a.jpg cls 1536 4 a.cls\njpg 2560 100 b.jpg cls 3584 4 b.cls\n"
MEMBERS = [
    {"jpg": Member("a.jpg", 512, 100), "cls": Member("a.cls", 1536, 4)},
    {"jpg": Member("b.jpg", 2560, 100), "cls": Member("b.cls", 3584, 4)},
]


def test_an_index_is_written_and_read_back():
    assert parse_index(GOOD) == MEMBERS
    assert to_index([sample.items() for sample in MEMBERS]) == GOOD
    assert to_index([]) == b"v1.2 0\n"


def test_the_index_is_what_tarfile_finds(tar):
    with tarfile.open(tar) as archive:
        found = [(info.name.split(".")[1], info.offset_data, info.size, info.name) for info in archive]
    lines = [" ".join(map(str, (*jpg, *cls))) for jpg, cls in zip(found[::2], found[1::2], strict=True)]
    assert index_path(tar).name == "train-000000.idx"
    assert index_path(tar).read_text() == "\n".join([f"v1.2 {len(SAMPLES)}", *lines]) + "\n"


@pytest.mark.parametrize(
    ("data", "label"), [(b"0349", 349), (b"7", 7), (b'{"a": 12, "label": 30', 30), (b"\0\n 00", 0)]
)
def test_a_label_is_the_digits_at_the_end(data, label):
    assert int(label_digits(data, adopted=True)) == label


def test_an_index_cut_anywhere_is_refused():
    for length in range(len(GOOD)):
        with pytest.raises(ValueError, match=r"it starts|unpack|argument|invalid"):
            parse_index(GOOD[:length])


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"v1.1" + GOOD[4:],
        b"v1.2 3" + GOOD[6:],
        GOOD.replace(b"512", b"x"),
        GOOD.replace(b" cls 1536 4 a.cls", b""),
        bytes(range(256)),
    ],
)
def test_a_missing_file_and_what_is_no_index_are_refused(tar, data):
    index_path(tar).unlink()
    if data is not None:
        index_path(tar).write_bytes(data)
    with pytest.raises(UsageError, match=r"000\.idx: not a complete v1\.2 index .*prepare the dataset again"):
        read_index(open_store(tar.parent), Shard(tar.name, 2, 0, ""))


def test_an_index_of_another_number_of_samples_is_refused(tar):
    with pytest.raises(UsageError, match="lists 8 samples, but the manifest says 9"):
        read_index(open_store(tar.parent), Shard(tar.name, 9, 0, ""))
