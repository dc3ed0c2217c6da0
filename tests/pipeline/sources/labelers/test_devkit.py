import gzip
import io
import subprocess
import sys
import tarfile

import pytest
from helpers.folders import place, refused
from helpers.imagenet_files import META, TRUTH, devkit_files, meta_mat, named, tar_bytes, write_devkit
from scipy.io import savemat

from pipeline.errors import UsageError
from pipeline.sources.labelers import devkit
from pipeline.sources.labelers.devkit import read_classes, read_devkit, read_ids
from pipeline.storage.open import open_store

NAME = "ILSVRC2012_devkit_t12"
ARCHIVE = f"{NAME}.tar.gz"
MD5 = "(its MD5 is fa75699e90414af021442c21a62c3abf)"
CLASSES = {1: ("n02119789", "kit fox, Vulpes macrotis"), 2: ("n02100735", "English setter")}


def read(root, meta, truth):
    """Read an extracted devkit that consists of these two files."""
    place(root / NAME / META, meta)
    place(root / NAME / TRUTH, truth)
    return read_devkit(open_store(root), f"{NAME}/{META}")


@pytest.fixture
def archive(tmp_path, tree):
    """A devkit's archive, in the folder `tmp_path`."""
    return write_devkit(tmp_path, tree)


def read_archive(archive):
    return read_devkit(open_store(archive.parent), ARCHIVE)


# What is read


def test_a_thousand_classes_and_fifty_thousand_labels(tmp_path):
    classes = {k: (f"n{k * 97:08d}", named(f"n{k * 97:08d}")) for k in range(1, 1001)}
    truth = b"2\r\n" + b"".join(b"%d\n" % (k % 1000 + 1) for k in range(1, 50_000))
    found = read(tmp_path, meta_mat(classes), truth)
    assert found.place == f"{tmp_path}/{NAME}"
    assert found.names == dict(classes.values())
    assert len(found.labels) == 50_000
    assert found.labels["ILSVRC2012_val_00000001"] == "n00000194"


@pytest.mark.parametrize(
    ("classes", "compressed"),
    [({7: ("n02119789", "kit fox")}, True), ({2: ("n02119789", "café, Grüße"), 1: CLASSES[2]}, False)],
)
def test_the_classes_are_the_synsets_without_children(classes, compressed):
    assert read_classes(meta_mat(classes, compressed), "kit") == classes


def test_packed_extracted_and_unzipped_are_the_same(archive, tree, scipy_once):
    packed = read_archive(archive)
    assert packed.place == str(archive)
    write_devkit(archive.parent, tree, extracted=True)
    extracted = read_devkit(open_store(archive.parent), f"{NAME}/{META}")
    assert (packed.names, packed.labels) == (extracted.names, extracted.labels)
    archive.write_bytes(gzip.decompress(archive.read_bytes()))  # as a browser does
    assert read_archive(archive) == packed


def test_ids_are_in_another_order_than_the_labels(tmp_path, tree, scipy_once):
    meta, truth = devkit_files(tree)
    found = read(tmp_path, meta, truth)
    assert list(found.names) == ["n01440764", "n01443537", "n02105855"]
    assert truth.splitlines()[0] == b"3"
    assert found.labels["ILSVRC2012_val_00000001"] == "n01440764"


@pytest.mark.parametrize("form", ["archive", "folder", "above", "above an archive", "meta"])
def test_ids_are_read_from_any_form_of_the_kit(tmp_path, tree, scipy_once, form):
    kit = write_devkit(tmp_path, tree, extracted=form in ("folder", "above", "meta"))
    path = {"above": tmp_path, "above an archive": tmp_path, "meta": kit / META}.get(form, kit)
    # As in the real kit, IDs do not follow the sorted WNIDs.
    assert read_ids(path) == {"n01440764": 3, "n01443537": 2, "n02105855": 1}


# Damage


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (b"1\n3\n", f"line 2 of {TRUTH} is '3', which is no class's ID in {META};"),
        (b"1\n\n2\n", f"line 2 of {TRUTH} is '',"),
        (b"9" * 5000, f"line 1 of {TRUTH} is '99999999999999999999',"),
        (b"1\n\xff\x00", f"line 2 of {TRUTH} is "),
    ],
)
def test_labels_that_are_no_class(tmp_path, scipy_once, truth, message):
    refused(lambda: read(tmp_path, meta_mat(CLASSES), truth), f"{tmp_path}/{NAME}: {message}", MD5)


@pytest.mark.parametrize(("kept", "lost"), [(META, TRUTH), (TRUTH, META)])
def test_a_part_that_is_missing(tmp_path, kept, lost):
    archive = place(tmp_path / ARCHIVE, tar_bytes([(f"{NAME}/{kept}", b"1\n")], "w:gz"))
    refused(lambda: read_archive(archive), f"{archive}: has no {lost};", MD5)
    if kept == META:
        place(tmp_path / NAME / META, b"1\n")
        read = lambda: read_devkit(open_store(tmp_path), f"{NAME}/{META}")  # noqa: E731
        refused(read, f"{tmp_path}/{NAME}: has no {lost};", MD5)


@pytest.mark.parametrize("data", [b"", b"junk", b"<html>" * 500, b"\x1f\x8bjunk"])
def test_what_is_no_archive(tmp_path, data):
    archive = place(tmp_path / ARCHIVE, data)
    refused(lambda: read_archive(archive), f"{archive}: cannot be unpacked: ", MD5)


def test_every_truncation_of_the_archive_is_an_error(archive):
    data = archive.read_bytes()
    for length in range(0, len(data), 7):
        archive.write_bytes(data[:length])
        refused(lambda: read_archive(archive), f"{archive}: ", MD5)


def test_a_flipped_bit_in_the_archive_is_an_error_or_changes_nothing(archive, scipy_once):
    data, whole = archive.read_bytes(), read_archive(archive)
    caught = 0
    for at in range(10, len(data), 11):
        archive.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            assert read_archive(archive) == whole
        except UsageError:
            caught += 1
    assert caught > 20


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    info = tarfile.TarInfo(f"{NAME}/{META}")
    info.size = 2**24
    monkeypatch.setattr(devkit, "_LARGEST", 2**20)
    archive = place(tmp_path / ARCHIVE, gzip.compress(info.tobuf() + bytes(2**24), 1))
    refused(lambda: read_archive(archive), f"{archive}: ", MD5)


def test_no_kit_and_a_damaged_one_have_different_messages(tmp_path):
    refused(lambda: read_ids(tmp_path / "nothing"), f"no development kit; name {ARCHIVE}")
    place(tmp_path / "meta.mat", b"junk")
    refused(lambda: read_ids(tmp_path / "meta.mat"), f"{META} is damaged")


def mat(content):
    file = io.BytesIO()
    savemat(file, content)
    return file.getvalue()


PLAIN = meta_mat(CLASSES, compressed=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PLAIN[:1000], "Error"),
        (mat({"other": 1}), "KeyError: 'synsets'"),
        (mat({"synsets": [{"WNID": "n02119789"}]}), "Error"),
        (meta_mat({1: ("fox", "kit fox"), 2: CLASSES[2]}), "'fox' is no WNID"),
        (meta_mat({1: CLASSES[1], 1.5: CLASSES[2]}), "ILSVRC2012_ID 1 occurs twice"),
        # With this byte SciPy 1.17.1's loadmat ends its process by a segmentation fault.
        (PLAIN[:905] + b"\xff" + PLAIN[906:], ""),
    ],
)
def test_what_is_no_table_of_classes(data, message):
    refused(lambda: read_classes(data, "kit"), f"kit: {META} is damaged: ", message, MD5)


def test_scipy_stays_out_of_the_caller_s_process_and_out_of_the_current_folder(tmp_path):
    place(tmp_path / "meta.mat", PLAIN)
    place(tmp_path / "scipy.py", b"raise RuntimeError('imported from the current folder')")
    code = (
        "import sys; from pathlib import Path; from pipeline.sources.labelers.devkit import read_classes; "
        "print(len(read_classes(Path('meta.mat').read_bytes(), 'kit')), 'scipy' in sys.modules)"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
