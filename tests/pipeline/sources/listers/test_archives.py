import shutil

import pytest
from helpers.folders import place
from helpers.imagenet_files import (
    contents,
    named,
    sample_tree,
    tar_bytes,
    val_labels,
    write_archives,
    write_devkit,
    write_folders,
    write_kaggle,
    write_mapping,
    write_solution,
)

from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError
from pipeline.sources.base import Container
from pipeline.sources.detection import read_source
from pipeline.storage.open import open_store

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
TRAIN_MD5, VAL_MD5 = "1d675b47d978889d74fa0da5fadfb00e", "29b22e2961454d5413ddabcf34fc5622"


@pytest.fixture
def tree(tmp_path):
    return sample_tree(tmp_path / "tree")


@pytest.fixture
def root(tmp_path, tree):
    """Archives with a devkit beside them."""
    return write_archives(tmp_path / "archives", tree)


def refused(root, *parts):
    with pytest.raises(UsageError) as error:
        read_source(root)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


# What is read


@pytest.mark.parametrize("labels", ["devkit", "extracted", "csv"])
def test_archives_kaggle_and_folders_hold_the_same(tmp_path, tree, labels):
    archives = read_source(write_archives(tmp_path / "a", tree, labels))
    kaggle = read_source(write_kaggle(tmp_path / "k", tree))
    folders = read_source(write_folders(tmp_path / "f", tree))
    assert [source.layout for source in (archives, kaggle, folders)] == ["archives", "kaggle", "folders"]
    assert contents(archives) == contents(kaggle) == contents(folders)
    assert {split: len(samples) for split, samples in archives.splits.items()} == {"train": 9, "val": 6}
    if labels != "csv":
        assert archives.classes == kaggle.classes
    assert kaggle.classes == folders.classes


def test_real_images_in_all_layouts(tmp_path, shared_data):
    tree = shared_data / "imagenet-sample"
    archives = read_source(write_archives(tmp_path / "a", tree))
    kaggle = read_source(write_kaggle(tmp_path / "k", tree))
    folders = read_source(write_folders(tmp_path / "f", tree))
    assert contents(archives) == contents(kaggle) == contents(folders)
    assert archives.classes == kaggle.classes == folders.classes
    for split in ("train", "val"):
        files = {(p.stem, p.parent.name, p.read_bytes()) for p in tree.glob(f"{split}/*/*")}
        assert contents(archives)[split] == files


def test_places_in_the_outer_archive(root, tree):
    source = read_source(root)
    assert source.containers == (
        Container(TRAIN, (root / TRAIN).stat().st_size),
        Container(VAL, (root / VAL).stat().st_size),
    )
    first = source.splits["train"][0]
    assert (first.path, first.label, first.container) == ("n01440764.tar/n01440764_42.JPEG", 0, 0)
    assert {(s.path, s.container) for s in source.splits["val"]} == {
        (f"{stem}.JPEG", 1) for stem in val_labels(tree)
    }
    assert source.notes == []


@pytest.mark.parametrize("name", [TRAIN, VAL])
def test_an_archive_may_be_named_as_the_source(root, name):
    assert read_source(root / name).fingerprint() == read_source(root).fingerprint()


def test_names_come_from_the_mapping_else_from_the_devkit_else_they_are_wnids(tmp_path, tree, root):
    words = [(wnid, named(wnid)) for wnid in ("n01440764", "n01443537", "n02105855")]
    assert [(c.id, c.name) for c in read_source(root).classes] == words
    place(root / "LOC_synset_mapping.txt", b"n01440764 tench\n")
    assert read_source(root).classes == (
        ClassInfo("n01440764", "tench"),
        ClassInfo("n01443537", "n01443537"),
        ClassInfo("n02105855", "n02105855"),
    )
    csv = read_source(write_archives(tmp_path / "csv", tree, "csv"))
    assert [(c.id, c.name) for c in csv.classes] == [(wnid, wnid) for wnid, _ in words]


def test_training_alone_needs_no_labels(root):
    (root / VAL).unlink()
    assert read_source(root).classes[0] == ClassInfo("n01440764", named("n01440764"))
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    source = read_source(root)
    assert list(source.splits) == ["train"]
    assert len(source.containers) == 1
    split = read_source(root, val_fraction=0.4).splits
    assert [len(split["train"]), len(split["val"])] == [6, 3]


def test_archives_win_over_folders_that_were_extracted_from_them(root, tree):
    write_folders(root, tree)
    assert read_source(root).layout == "archives"
    assert read_source(root, "folders").layout == "folders"
    (root / TRAIN).unlink()
    assert read_source(root).layout == "folders"


def test_a_bucket(root, s3):
    for path in root.iterdir():
        open_store(s3).write(f"some/prefix/{path.name}", path.read_bytes())
    here = read_source(root)
    for url in (f"{s3}/some/prefix", f"{s3}/some/prefix/{TRAIN}"):
        source = read_source(url)
        assert source.root == f"{s3}/some/prefix"
        assert (source.splits, source.containers) == (here.splits, here.containers)
        assert (source.classes, source.notes) == (here.classes, here.notes)
    open_store(s3).write(f"some/prefix/{TRAIN}", (root / TRAIN).read_bytes()[:-11000])
    refused(f"{s3}/some/prefix", f"{s3}/some/prefix/{TRAIN}: truncated at offset ")


def test_other_members_are_noted_and_hidden_ones_do_not_exist(tmp_path, root):
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


def test_colliding_names_get_their_class_in_front_as_in_folders(tmp_path):
    tree = tmp_path / "tree"
    for wnid in ("n01440764", "n01443537"):
        for name in ("1.JPEG", "a.b c.JPEG", "é" * 60 + ".JPEG", f"{wnid}_1.JPEG"):
            place(tree / "train" / wnid / name, f"{wnid}{name}".encode())
        place(tree / "val" / wnid / f"ILSVRC2012_val_0000000{wnid[-1]}.JPEG", wnid.encode())
    archives = read_source(write_archives(tmp_path / "a", tree))
    assert contents(archives) == contents(read_source(write_folders(tmp_path / "f", tree)))
    assert "n01443537-1" in {s.key for s in archives.splits["train"]}
    assert archives.notes == ["6 images share a file name with another; their keys have the class in front"]


# Bad archives


def test_validation_alone(root):
    (root / TRAIN).unlink()
    refused(root, f"source {root}: found no {TRAIN}; put it beside {VAL}")


def test_a_truncated_training_archive(root):
    data = (root / TRAIN).read_bytes()
    place(root / TRAIN, data[:-11000])
    at = f"{len(data) - 11000:,}"
    refused(root, f"{root / TRAIN}: truncated at offset {at}: member n02105855.tar needs", TRAIN_MD5)


def test_a_truncated_validation_archive(root):
    data = (root / VAL).read_bytes()
    place(root / VAL, data[:1000])
    refused(root, f"{root / VAL}: truncated at offset 1,000: the end mark is missing", VAL_MD5)


def test_an_inner_member_that_is_no_tar(root):
    inner = tar_bytes([("n01440764_1.JPEG", b"1")])
    place(root / TRAIN, tar_bytes([("n01440764.tar", inner), ("n01443537.tar", b"<html>" * 500)]))
    at = 512 + len(inner) + 512
    refused(root, f"{TRAIN} (in n01443537.tar): damaged at offset {at:,}: no tar header", TRAIN_MD5)


def test_an_inner_tar_that_is_cut_short(root):
    inner = tar_bytes([("n01440764_1.JPEG", bytes(2000))])
    place(root / TRAIN, tar_bytes([("n01440764.tar", inner[:1100]), ("n01443537.tar", inner)]))
    refused(root, "(in n01440764.tar): truncated at offset 1,612: member n01440764_1.JPEG needs 1,412 bytes")


def test_a_class_twice(root):
    inner = tar_bytes([("n01440764_1.JPEG", b"1")])
    place(root / TRAIN, tar_bytes([("n01440764.tar", inner), ("n01440764.tar", inner)]))
    refused(root, f"member n01440764.tar at offset {1024 + len(inner):,} is there twice")


def test_a_tar_of_another_name(root):
    place(root / TRAIN, tar_bytes([("cats.tar", tar_bytes([("1.JPEG", b"1")]))]))
    refused(root, "member cats.tar at offset 512 is not named nXXXXXXXX.tar")


def test_an_archive_of_images_instead_of_tars(root):
    place(root / TRAIN, tar_bytes([("n01440764/n01440764_1.JPEG", b"1")]))
    refused(root, "holds 1 files, but no tar of a class (nXXXXXXXX.tar)")


def test_validation_images_where_the_training_tars_should_be(root):
    shutil.copy(root / VAL, root / TRAIN)
    refused(root, "holds 6 files, but no tar of a class")


def test_a_validation_archive_without_images(root):
    shutil.copy(root / TRAIN, root / VAL)
    refused(root, f"{root / VAL}: holds no images", VAL_MD5)


def test_a_class_without_images(root, tree):
    inner = [(f"{wnid}.tar", tar_bytes([])) for wnid in ("n01440764",)]
    full = [(f"{w}.tar", tar_bytes([(f"{w}_1.JPEG", b"1")])) for w in ("n01443537", "n02105855")]
    place(root / TRAIN, tar_bytes(inner + full))
    refused(root, "no training images for n01440764;")


def test_validation_images_of_classes_that_are_not_in_training(root):
    inner = tar_bytes([("n01440764_1.JPEG", b"1")])
    place(root / TRAIN, tar_bytes([("n01440764.tar", inner)]))
    refused(root, "no training images for n01443537, n02105855;")


# Bad labels


def test_no_label_file(root):
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    refused(
        root,
        f"{root / VAL}: no labels for its 6 images; put ILSVRC2012_devkit_t12.tar.gz or "
        f"LOC_val_solution.csv into {root}",
    )


def test_a_devkit_that_is_too_short(root, tree):
    last = max(val_labels(tree))
    write_devkit(root, tree, lines=int(last[-8:]) - 1)
    count = f"1 of 6 images are not among its {int(last[-8:]) - 1} labels, the first is {last};"
    refused(root, "devkit_t12.tar.gz does not match", count)


def test_a_csv_that_lacks_an_image(tmp_path, tree):
    root = write_archives(tmp_path / "csv", tree, "csv")
    labels = val_labels(tree)
    first, second, *_ = sorted(labels)
    write_solution(root, tree, {stem: wnid for stem, wnid in labels.items() if stem not in (first, second)})
    count = f"2 of 6 images are not among its 4 labels, the first is {first};"
    refused(root, "LOC_val_solution.csv does not match", count)


def test_a_validation_image_of_another_name(tmp_path, tree, root):
    place(root / VAL, tar_bytes([("ILSVRC2012_val_00000001.JPEG", b"1"), ("holiday.JPEG", b"2")]))
    refused(root, "1 of 2 images are not among its 36 labels, the first is holiday;")


def test_labels_that_agree_and_labels_that_do_not(root, tree):
    write_solution(root, tree)
    assert contents(read_source(root))["val"] == {
        (p.stem, p.parent.name, p.read_bytes()) for p in tree.glob("val/*/*")
    }
    labels = val_labels(tree)
    wrong = sorted(labels)[2:4]
    write_solution(root, tree, labels | dict.fromkeys(wrong, "n99999999"))
    refused(
        root,
        "LOC_val_solution.csv disagree: ",
        f"{wrong[0]} is {labels[wrong[0]]} in the one and n99999999 in the other;",
    )


def test_a_devkit_of_other_classes(root, tree):
    labels = dict.fromkeys(val_labels(tree), "n01440764")
    write_devkit(root, tree, classes=["n01440764", "n09999999"], labels=labels)
    refused(root, f"t12.tar.gz does not match {root / TRAIN}: it lacks n01443537 and 1 more of its classes;")


def test_a_mapping_file_does_not_hide_a_damaged_devkit(root, tree):
    write_mapping(root, tree)
    place(root / "ILSVRC2012_devkit_t12.tar.gz", b"junk")
    refused(root, "devkit_t12.tar.gz: cannot be unpacked", "fa75699e90414af021442c21a62c3abf")
