import shutil

import pytest
from helpers.folders import place, refused
from helpers.imagenet_files import (
    contents,
    in_tree,
    named,
    val_labels,
    write_devkit,
    write_kaggle,
    write_solution,
)

from pipeline.sources.detection import read_source

pytestmark = pytest.mark.usefixtures("scipy_once")

BASE = "ILSVRC/Data/CLS-LOC"


@pytest.fixture
def root(tmp_path, tree):
    return write_kaggle(tmp_path / "kaggle", tree)


# What is read


def test_the_tree_as_downloaded(root, tree):
    source = read_source(root)
    assert source.splits["train"][0].path == f"{BASE}/train/n01440764/n01440764_42.JPEG"
    assert source.splits["val"][0].path == f"{BASE}/val/{min(val_labels(tree))}.JPEG"
    assert source.notes == [f"{root}/{BASE}/test: left out, its images have no labels"]


@pytest.mark.parametrize("below", ["ILSVRC", "ILSVRC/Data", BASE])
def test_a_folder_of_the_tree_as_source(root, tree, below, tmp_path):
    for name in ("LOC_synset_mapping.txt", "LOC_val_solution.csv"):
        shutil.move(root / name, root / below / name)
    for source in (read_source(root), read_source(root / below)):
        assert source.layout == "kaggle"
        assert contents(source, tmp_path) == in_tree(tree)
        assert source.classes[0].name == named("n01440764")


def test_the_nearest_label_file_counts(root, tree, tmp_path):
    wrong = dict.fromkeys(val_labels(tree), "n01440764")
    write_solution(root, tree, wrong)
    write_solution(root / "ILSVRC", tree)
    assert contents(read_source(root), tmp_path) == in_tree(tree)


@pytest.mark.parametrize("labels", [write_solution, write_devkit])
def test_flat_validation_images_beside_train(tmp_path, tree, labels):
    root = write_kaggle(tmp_path / "plain", tree, base="")
    (root / "LOC_val_solution.csv").unlink()
    labels(root, tree)
    source = read_source(root)
    assert source.layout == "kaggle"
    assert contents(source, tmp_path) == in_tree(tree)


def test_validation_images_in_class_folders_need_no_labels(root, tree, tmp_path):
    shutil.rmtree(root / BASE / "val")
    shutil.copytree(tree / "val", root / BASE / "val")
    (root / "LOC_val_solution.csv").unlink()
    for folder, layout in ((root, "kaggle"), (root / BASE, "folders")):
        source = read_source(folder)
        assert source.layout == layout
        assert contents(source, tmp_path) == in_tree(tree)


@pytest.mark.parametrize("empty", [True, False])
def test_training_alone(root, empty):
    shutil.rmtree(root / BASE / "val")
    (root / "LOC_val_solution.csv").unlink()
    if empty:
        (root / BASE / "val").mkdir()
    source = read_source(root)
    assert (source.layout, list(source.splits)) == ("kaggle", ["train"])
    assert source.classes[1].name == named("n01443537")
    assert (f"{root}/{BASE}/val: no images, left out" in source.notes) == empty


def test_other_files_are_noted(root):
    place(root / BASE / "val" / "notes.txt")
    place(root / BASE / "val" / ".DS_Store")
    place(root / BASE / "train" / "list.txt")
    assert read_source(root).notes[:2] == [
        f"{root}/{BASE}/train: 1 file is no image in a class folder, left out",
        f"{root}/{BASE}/val: 1 file is no image, left out",
    ]


# Bad input


def test_no_training_folder(root):
    shutil.rmtree(root / BASE / "train")
    message = f"source {root}: found no {BASE}/train folder; name the folder above ILSVRC"
    refused(lambda: read_source(root), message)


def test_the_innermost_folder_without_the_csv_above_it(root):
    message = "or name a folder above it that holds one of them"
    refused(lambda: read_source(root / BASE), f"{root / BASE}/val: no labels for its 6 images", message)
