import gzip
import io
import subprocess
import sys
import tarfile

import pytest
from helpers.folders import place
from helpers.imagenet_files import (
    META,
    TRUTH,
    devkit_files,
    meta_mat,
    named,
    sample_tree,
    tar_bytes,
    write_devkit,
)
from hypothesis import given, settings, strategies as st
from scipy.io import savemat

from pipeline.errors import UsageError
from pipeline.sources.labelers.devkit import Synset, read_devkit, read_ids, read_synsets
from pipeline.storage.open import open_store

NAME = "ILSVRC2012_devkit_t12"
ARCHIVE = f"{NAME}.tar.gz"
MD5 = "fa75699e90414af021442c21a62c3abf"
CLASSES = {1: ("n02119789", "kit fox, Vulpes macrotis"), 2: ("n02100735", "English setter")}


def read(root, meta, truth):
    """Read an extracted devkit that consists of these two files."""
    place(root / NAME / META, meta)
    place(root / NAME / TRUTH, truth)
    return read_devkit(open_store(root), f"{NAME}/{META}")


def refused(root, message, name=ARCHIVE):
    with pytest.raises(UsageError) as error:
        read_devkit(open_store(root), name)
    assert message in str(error.value)
    assert str(error.value).endswith(f"(its MD5 is {MD5})")
    assert "\n" not in str(error.value)


def gzip_is_sound(data):
    """Whether the gzip program accepts the file, including its checksum."""
    return subprocess.run(["gzip", "-t"], input=bytes(data), capture_output=True).returncode == 0


# What is read


def test_classes_and_labels(tmp_path):
    devkit = read(tmp_path, meta_mat(CLASSES), b"2\n1\r\n2")
    assert devkit.place == f"{tmp_path}/{NAME}"
    assert devkit.names == dict(CLASSES.values())
    assert devkit.labels == {
        "ILSVRC2012_val_00000001": "n02100735",
        "ILSVRC2012_val_00000002": "n02119789",
        "ILSVRC2012_val_00000003": "n02100735",
    }


def test_a_single_class(tmp_path):
    assert read(tmp_path, meta_mat({7: ("n02119789", "kit fox")}), b"7\n").names == {"n02119789": "kit fox"}


def test_a_thousand_classes_and_fifty_thousand_labels(tmp_path):
    classes = {k: (f"n{k * 97:08d}", named(f"n{k * 97:08d}")) for k in range(1, 1001)}
    truth = "".join(f"{k % 1000 + 1}\n" for k in range(50_000)).encode()
    devkit = read(tmp_path, meta_mat(classes), truth)
    assert devkit.names == dict(classes.values())
    assert len(devkit.labels) == 50_000
    assert devkit.labels["ILSVRC2012_val_00050000"] == "n00097000"
    assert devkit.labels["ILSVRC2012_val_00001001"] == "n00000097"


def test_packed_and_extracted_are_the_same(tmp_path):
    tree = sample_tree(tmp_path / "tree")
    write_devkit(tmp_path, tree)
    write_devkit(tmp_path, tree, extracted=True)
    store = open_store(tmp_path)
    packed, extracted = read_devkit(store, ARCHIVE), read_devkit(store, f"{NAME}/{META}")
    assert (packed.names, packed.labels) == (extracted.names, extracted.labels)
    assert packed.place == f"{tmp_path}/{ARCHIVE}"


def test_an_archive_that_a_browser_has_unzipped(tmp_path):
    archive = write_devkit(tmp_path, sample_tree(tmp_path / "tree"))
    packed = read_devkit(open_store(tmp_path), ARCHIVE)
    archive.write_bytes(gzip.decompress(archive.read_bytes()))
    assert read_devkit(open_store(tmp_path), ARCHIVE) == packed


# Damage


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (b"1\n3\n", f"line 2 of {TRUTH} is '3', which is no class's ID in {META};"),
        (b"1\n\n2\n", f"line 2 of {TRUTH} is '',"),
        (b"-1\n", f"line 1 of {TRUTH} is '-1',"),
        (b"1 2\n", f"line 1 of {TRUTH} is '1 2',"),
        (b"n02119789\n", f"line 1 of {TRUTH} is 'n02119789',"),
        (b"9" * 5000, f"line 1 of {TRUTH} is '99999999999999999999',"),
        (b"1\n\xff\x00", f"line 2 of {TRUTH} is "),
    ],
)
def test_labels_that_are_no_class(tmp_path, truth, message):
    place(tmp_path / NAME / META, meta_mat(CLASSES))
    place(tmp_path / NAME / TRUTH, truth)
    refused(tmp_path, f"{tmp_path}/{NAME}: {message}", f"{NAME}/{META}")


@pytest.mark.parametrize("kept", [META, TRUTH])
def test_a_part_that_is_missing(tmp_path, kept):
    lost = {META: TRUTH, TRUTH: META}[kept]
    data = dict(zip((META, TRUTH), (meta_mat(CLASSES), b"1\n"), strict=True))
    place(tmp_path / ARCHIVE, tar_bytes([(f"{NAME}/{kept}", data[kept])], "w:gz"))
    refused(tmp_path, f"{tmp_path}/{ARCHIVE}: has no {lost};")
    if kept == META:
        place(tmp_path / NAME / META, data[META])
        refused(tmp_path, f"{tmp_path}/{NAME}: has no {lost};", f"{NAME}/{META}")


def test_what_is_no_archive(tmp_path):
    for data in (b"", b"junk", b"<html>" * 500, b"\x1f\x8bjunk"):
        place(tmp_path / ARCHIVE, data)
        refused(tmp_path, f"{tmp_path}/{ARCHIVE}: cannot be unpacked: ")


def test_every_truncation_of_the_archive_is_an_error(tmp_path):
    data = write_devkit(tmp_path, sample_tree(tmp_path / "tree")).read_bytes()
    for length in range(0, len(data), 7):
        place(tmp_path / ARCHIVE, data[:length])
        refused(tmp_path, f"{tmp_path}/{ARCHIVE}: ")


def test_a_flipped_bit_in_the_archive_is_an_error_or_changes_nothing(tmp_path):
    data = write_devkit(tmp_path, sample_tree(tmp_path / "tree")).read_bytes()
    whole, caught = read_devkit(open_store(tmp_path), ARCHIVE), 0
    for at in range(10, len(data), 11):
        damaged = bytearray(data)
        damaged[at] ^= 16
        place(tmp_path / ARCHIVE, bytes(damaged))
        if gzip_is_sound(damaged):  # this is another valid encoding of the same data
            assert read_devkit(open_store(tmp_path), ARCHIVE) == whole
        else:
            refused(tmp_path, f"{tmp_path}/{ARCHIVE}: ")
            caught += 1
    assert caught > 20


def test_a_bomb_is_not_unpacked(tmp_path):
    info = tarfile.TarInfo(f"{NAME}/{META}")
    info.size = 2**31
    data = gzip.compress(info.tobuf() + bytes(2**28), 1)
    place(tmp_path / ARCHIVE, data)
    refused(tmp_path, f"{tmp_path}/{ARCHIVE}: ")


def test_meta_mat_of_something_else(tmp_path):
    for content in ({"other": 1}, {"synsets": 5}, {"synsets": "text"}, {"synsets": [{"WNID": "n02119789"}]}):
        file = io.BytesIO()
        savemat(file, content)
        place(tmp_path / NAME / META, file.getvalue())
        place(tmp_path / NAME / TRUTH, b"1\n")
        refused(tmp_path, f"{tmp_path}/{NAME}: {META} is damaged: ", f"{NAME}/{META}")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({1: ("fox", "kit fox"), 2: CLASSES[2]}, "'fox' is no WNID"),
        ({1: CLASSES[1], 1.5: CLASSES[2]}, "ILSVRC2012_ID 1 occurs twice"),
    ],
)
def test_classes_that_cannot_be(tmp_path, classes, message):
    place(tmp_path / NAME / META, meta_mat(classes))
    place(tmp_path / NAME / TRUTH, b"1\n")
    refused(tmp_path, f"{META} is damaged: {message}", f"{NAME}/{META}")


def test_the_helper_s_ids_are_in_another_order_than_the_labels(tmp_path):
    meta, truth = devkit_files(sample_tree(tmp_path))
    devkit = read(tmp_path / "kit", meta, truth)
    assert list(devkit.names) == ["n01440764", "n01443537", "n02105855"]
    assert truth.splitlines()[0] == b"3"
    assert devkit.labels["ILSVRC2012_val_00000001"] == "n01440764"


# The IDs alone


@pytest.mark.parametrize("form", ["archive", "folder", "above", "above an archive", "meta"])
def test_ids_are_read_from_any_form_of_the_kit(tmp_path, form):
    tree = sample_tree(tmp_path / "tree")
    kit = write_devkit(tmp_path, tree, extracted=form in ("folder", "above", "meta"))
    path = {"above": tmp_path, "above an archive": tmp_path, "meta": kit / META}.get(form, kit)
    # As in the real kit, IDs do not follow the sorted WNIDs.
    assert read_ids(path) == {"n01440764": 3, "n01443537": 2, "n02105855": 1}


def test_no_kit_and_a_damaged_one_have_different_messages(tmp_path):
    with pytest.raises(UsageError, match=r"no development kit; name ILSVRC2012_devkit_t12\.tar\.gz"):
        read_ids(tmp_path / "nothing")
    place(tmp_path / "meta.mat", b"junk")
    with pytest.raises(UsageError, match="damaged"):
        read_ids(tmp_path / "meta.mat")


PLAIN = meta_mat(CLASSES, compressed=False)


def with_byte(at, value):
    return PLAIN[:at] + bytes([value]) + PLAIN[at + 1 :]


@pytest.mark.parametrize("compressed", [False, True])
def test_the_rows_of_the_table(compressed):
    assert read_synsets(meta_mat(CLASSES, compressed)) == [
        Synset(1, "n02119789", "kit fox, Vulpes macrotis", 0),
        Synset(2, "n02100735", "English setter", 0),
        Synset(3, "n00000001", "entity", 2),
    ]


def test_names_beyond_ascii():
    found = read_synsets(meta_mat({1: ("n02119789", "café, Grüße"), 2: CLASSES[2]}))
    assert found[0].words == "café, Grüße"


@pytest.mark.parametrize("data", [b"", b"junk", bytes(5000), PLAIN[:1000], PLAIN[:200], b"<html>" * 500])
def test_what_is_no_such_file(data):
    with pytest.raises(ValueError, match=r"^\w+: .") as error:
        read_synsets(data)
    assert "\n" not in str(error.value)


def test_a_table_of_something_else():
    file = io.BytesIO()
    savemat(file, {"other": 1})
    with pytest.raises(ValueError, match="KeyError: 'synsets'"):
        read_synsets(file.getvalue())


# With each of these bytes SciPy 1.17.1's loadmat ends its process by a segmentation fault.
@pytest.mark.parametrize(("at", "value"), [(384, 122), (905, 255), (1288, 0), (1441, 255)])
def test_damage_that_crashes_scipy_is_an_error(at, value):
    with pytest.raises(ValueError, match=r"crashed SciPy|\w+Error: "):
        read_synsets(with_byte(at, value))


@settings(max_examples=10)
@given(st.integers(0, len(PLAIN) - 1), st.integers(0, 255))
def test_any_damage_ends_in_rows_or_one_line(at, value):
    try:
        read_synsets(with_byte(at, value))
    except ValueError as error:
        message = str(error)
    else:
        message = "read"
    assert message
    assert "\n" not in message


def test_scipy_stays_out_of_the_caller_s_process(tmp_path):
    (tmp_path / "meta.mat").write_bytes(PLAIN)
    code = (
        "import sys; from pathlib import Path; from pipeline.sources.labelers.devkit import read_synsets; "
        "read_synsets(Path(sys.argv[1]).read_bytes()); print('scipy' in sys.modules)"
    )
    command = [sys.executable, "-c", code, tmp_path / "meta.mat"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
