import shutil

import pytest
from helpers.folders import place, refused
from helpers.imagenet_files import (
    contents,
    in_tree,
    named,
    tar_bytes,
    val_labels,
    write_archives,
    write_devkit,
    write_folders,
    write_mapping,
    write_solution,
)

from pipeline.dataset.manifest import ClassInfo
from pipeline.sources.base import Container
from pipeline.sources.detection import read_source

pytestmark = pytest.mark.usefixtures("scipy_once")

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
TRAIN_MD5, VAL_MD5 = "1d675b47d978889d74fa0da5fadfb00e", "29b22e2961454d5413ddabcf34fc5622"
KIT = "ILSVRC2012_devkit_t12.tar.gz"


@pytest.fixture
def root(tmp_path, tree):
    """Archives with a devkit beside them."""
    return write_archives(tmp_path / "archives", tree)


# What is read


def test_places_in_the_outer_archive(root, tree):
    source = read_source(root)
    assert source.containers == tuple(Container(name, (root / name).stat().st_size) for name in (TRAIN, VAL))
    first = source.splits["train"][0]
    assert (first.path, first.label, first.container) == ("n01440764.tar/n01440764_42.JPEG", 0, 0)
    assert {(s.path, s.container) for s in source.splits["val"]} == {
        (f"{stem}.JPEG", 1) for stem in val_labels(tree)
    }
    assert source.notes == []


def test_names_come_from_the_mapping_else_from_the_devkit_else_they_are_wnids(root, tree):
    wnids = ("n01440764", "n01443537", "n02105855")
    assert read_source(root).classes == tuple(ClassInfo(wnid, named(wnid)) for wnid in wnids)
    place(root / "LOC_synset_mapping.txt", b"n01440764 tench\n")
    assert [c.name for c in read_source(root).classes] == ["tench", *wnids[1:]]
    (root / "LOC_synset_mapping.txt").unlink()
    (root / KIT).unlink()
    write_solution(root, tree)
    assert [c.name for c in read_source(root).classes] == list(wnids)


def test_training_alone_needs_no_labels(root):
    (root / VAL).unlink()
    assert read_source(root).classes[0].name == named("n01440764")
    (root / KIT).unlink()
    source = read_source(root)
    assert list(source.splits) == ["train"]
    assert len(source.containers) == 1
    split = read_source(root, val_fraction=0.4).splits
    assert [len(split["train"]), len(split["val"])] == [6, 3]


def test_a_validation_archive_beside_extracted_training_folders(root, tree):
    write_folders(root, tree)
    (root / TRAIN).unlink()
    assert read_source(root).layout == "folders"


def test_other_members_are_noted_and_hidden_ones_do_not_exist(root):
    inner = tar_bytes([("./n01440764_1.JPEG", b"1"), ("notes.txt", b""), ("._n01440764_1.JPEG", b"m")])
    other = tar_bytes([("sub/n01443537_9.JPEG", b"2")])
    outer = [("n01440764.tar", inner), ("./n01443537.tar", other), ("README", b"x")]
    place(root / TRAIN, tar_bytes([*outer, ("._n01440764.tar", b"m")]))
    (root / VAL).unlink()
    source = read_source(root)
    assert [s.path for s in source.splits["train"]] == [
        "n01440764.tar/n01440764_1.JPEG",
        "n01443537.tar/sub/n01443537_9.JPEG",
    ]
    assert source.notes == [f"{TRAIN}: 2 members are no image, left out"]


# Bad archives


def test_validation_alone(root):
    (root / TRAIN).unlink()
    refused(lambda: read_source(root), f"source {root}: found no {TRAIN}; put it beside {VAL}")


@pytest.mark.parametrize(
    ("name", "keep", "message", "md5"),
    [
        (TRAIN, -11000, "member n02105855.tar needs", TRAIN_MD5),
        (VAL, 1000, "the end mark is missing", VAL_MD5),
    ],
)
def test_a_truncated_archive(root, name, keep, message, md5):
    data = (root / name).read_bytes()[:keep]
    place(root / name, data)
    refused(lambda: read_source(root), f"{root / name}: truncated at offset {len(data):,}: {message}", md5)


ONE = tar_bytes([("n01440764_1.JPEG", b"1")])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("n01440764.tar", ONE), ("n01443537.tar", b"<html>" * 500)],
            f"(in n01443537.tar): damaged at offset {512 + len(ONE) + 512:,}: no tar header",
        ),
        ([("n01440764.tar", ONE)] * 2, f"n01440764.tar at offset {1024 + len(ONE):,} is there twice"),
        ([("cats.tar", ONE)], "member cats.tar at offset 512 is not named nXXXXXXXX.tar"),
        ([("n01440764/n01440764_1.JPEG", b"1")], "holds 1 files, but no tar of a class (nXXXXXXXX.tar)"),
        ([("n01440764.tar", tar_bytes([])), ("n01443537.tar", ONE)], "no training images for n01440764"),
    ],
)
def test_training_archives_of_something_else(root, members, message):
    place(root / TRAIN, tar_bytes(members))
    refused(lambda: read_source(root), message)


def test_a_validation_archive_without_images(root):
    shutil.copy(root / TRAIN, root / VAL)
    refused(lambda: read_source(root), f"{root / VAL}: holds no images", VAL_MD5)


# Bad labels


def test_labels_that_agree_and_labels_that_do_not(root, tree, tmp_path):
    write_solution(root, tree)
    assert contents(read_source(root), tmp_path) == in_tree(tree)
    labels = val_labels(tree)
    wrong = sorted(labels)[2:4]
    write_solution(root, tree, labels | dict.fromkeys(wrong, "n99999999"))
    message = f"{wrong[0]} is {labels[wrong[0]]} in the one and n99999999 in the other;"
    refused(lambda: read_source(root), "LOC_val_solution.csv disagree: ", message)


def test_a_devkit_of_other_classes(root, tree):
    labels = dict.fromkeys(val_labels(tree), "n01440764")
    write_devkit(root, tree, classes=["n01440764", "n09999999"], labels=labels)
    message = f"{KIT} does not match {root / TRAIN}: it lacks n01443537 and 1 more of its classes;"
    refused(lambda: read_source(root), message)


def test_a_mapping_file_does_not_hide_a_damaged_devkit(root, tree):
    write_mapping(root, tree)
    place(root / KIT, b"junk")
    refused(lambda: read_source(root), f"{KIT}: cannot be unpacked")
