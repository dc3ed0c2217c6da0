import shutil

import pytest
from helpers.folders import place
from helpers.imagenet_files import (
    contents,
    named,
    sample_tree,
    val_labels,
    write_devkit,
    write_kaggle,
    write_solution,
)

from pipeline.errors import UsageError
from pipeline.sources.detection import read_source
from pipeline.storage.open import open_store

BASE = "ILSVRC/Data/CLS-LOC"


@pytest.fixture
def tree(tmp_path):
    return sample_tree(tmp_path / "tree")


@pytest.fixture
def root(tmp_path, tree):
    return write_kaggle(tmp_path / "kaggle", tree)


def refused(root, *parts, **options):
    with pytest.raises(UsageError) as error:
        read_source(root, **options)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def files(tree):
    """Return split → {(stem, WNID, bytes)} of a tree of class folders."""
    return {
        split: {(p.stem, p.parent.name, p.read_bytes()) for p in tree.glob(f"{split}/*/*")}
        for split in ("train", "val")
    }


# What is read


def test_the_tree_as_downloaded(root, tree):
    source = read_source(root)
    assert source.layout == "kaggle"
    assert contents(source) == files(tree)
    wnids = ["n01440764", "n01443537", "n02105855"]
    assert [(c.id, c.name) for c in source.classes] == [(wnid, named(wnid)) for wnid in wnids]
    assert source.splits["train"][0].path == f"{BASE}/train/n01440764/n01440764_42.JPEG"
    assert source.splits["val"][0].path == f"{BASE}/val/{min(val_labels(tree))}.JPEG"
    assert source.notes == [f"{root}/{BASE}/test: left out, its images have no labels"]


@pytest.mark.parametrize("below", ["ILSVRC", "ILSVRC/Data", BASE])
def test_a_folder_of_the_tree_as_source(root, tree, below):
    for name in ("LOC_synset_mapping.txt", "LOC_val_solution.csv"):
        shutil.move(root / name, root / below / name)
    for source in (read_source(root), read_source(root / below)):
        assert source.layout == "kaggle"
        assert contents(source) == files(tree)
        assert source.classes[0].name == named("n01440764")


def test_the_nearest_label_file_counts(root, tree):
    wrong = dict.fromkeys(val_labels(tree), "n01440764")
    write_solution(root, tree, wrong)
    write_solution(root / "ILSVRC", tree)
    assert contents(read_source(root)) == files(tree)


@pytest.mark.parametrize("labels", [write_solution, write_devkit])
def test_flat_validation_images_beside_train(tmp_path, tree, labels):
    root = write_kaggle(tmp_path / "plain", tree, base="")
    (root / "LOC_val_solution.csv").unlink()
    labels(root, tree)
    source = read_source(root)
    assert source.layout == "kaggle"
    assert contents(source) == files(tree)


def test_validation_images_in_class_folders_need_no_labels(root, tree):
    shutil.rmtree(root / BASE / "val")
    shutil.copytree(tree / "val", root / BASE / "val")
    (root / "LOC_val_solution.csv").unlink()
    assert contents(read_source(root)) == files(tree)
    assert read_source(root / BASE).layout == "folders"
    assert contents(read_source(root / BASE)) == files(tree)


def test_training_alone(root, tree):
    shutil.rmtree(root / BASE / "val")
    (root / "LOC_val_solution.csv").unlink()
    source = read_source(root)
    assert (source.layout, list(source.splits)) == ("kaggle", ["train"])
    assert source.classes[1].name == named("n01443537")


def test_other_files_are_noted(root):
    place(root / BASE / "val" / "notes.txt")
    place(root / BASE / "val" / ".DS_Store")
    place(root / BASE / "train" / "list.txt")
    assert read_source(root).notes[:2] == [
        f"{root}/{BASE}/train: 1 file is no image in a class folder, left out",
        f"{root}/{BASE}/val: 1 file is no image, left out",
    ]


def test_an_empty_validation_folder_is_noted(root):
    shutil.rmtree(root / BASE / "val")
    (root / BASE / "val").mkdir()
    source = read_source(root)
    assert list(source.splits) == ["train"]
    assert source.notes[0] == f"{root}/{BASE}/val: no images, left out"


def test_a_bucket(root, s3):
    for path in root.rglob("*.*"):
        open_store(s3).write(f"kaggle/{path.relative_to(root)}", path.read_bytes())
    source, here = read_source(f"{s3}/kaggle"), read_source(root)
    assert source.layout == "kaggle"
    assert (source.splits, source.classes) == (here.splits, here.classes)
    assert source.notes == [f"{s3}/kaggle/{BASE}/test: left out, its images have no labels"]


# Bad input


def test_no_training_folder(root):
    shutil.rmtree(root / BASE / "train")
    refused(root, f"source {root}: found no {BASE}/train folder; name the folder above ILSVRC")


def test_no_label_file(root):
    (root / "LOC_val_solution.csv").unlink()
    refused(
        root,
        f"{root}/{BASE}/val: no labels for its 6 images; put ILSVRC2012_devkit_t12.tar.gz or "
        f"LOC_val_solution.csv into {root}",
    )


def test_the_innermost_folder_without_the_csv_above_it(root):
    refused(root / BASE, "no labels for its 6 images", "or name a folder above it that holds one of them")


def test_a_validation_image_without_a_label(root):
    place(root / BASE / "val" / "ILSVRC2012_val_00000099.JPEG")
    refused(
        root,
        "LOC_val_solution.csv does not match",
        "1 of 7 images are not among its 6 labels, the first is ILSVRC2012_val_00000099;",
    )


def test_labels_of_classes_without_training_images(root):
    shutil.rmtree(root / BASE / "train" / "n01443537")
    refused(root, "no training images for n01443537;")


def test_an_empty_class_folder(root):
    (root / BASE / "train" / "n00000001").mkdir()
    refused(root, "no training images for n00000001;")


def test_a_validation_fraction_beside_validation_images(root):
    refused(root, "--val-fraction 0.1 was asked for", val_fraction=0.1)
