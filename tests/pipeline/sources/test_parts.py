"""Splits by their names, and images beside them."""

import pytest
from helpers.folders import flat, place, refused
from helpers.imagenet_files import tar_bytes

from pipeline.sources.base import SourceOptions
from pipeline.sources.detection import read_source
from pipeline.sources.labelers.splits import split_of_path


def counts(root, **options):
    source = read_source(root, SourceOptions(**options))
    return {split: len(samples) for split, samples in source.splits.items()}


def tars(root, *names):
    for name in names:
        place(root / f"{name}.tar", tar_bytes([(f"{name}_{k}.jpg", b"x") for k in range(2)]))


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/validation-00000-of-00014.parquet", "val"),
        ("default/validation/0000.parquet", "val"),
        ("imagenet_dev12.tar", "val"),
        ("ILSVRC2012_VALID.tgz", "val"),
        ("testing/0.tar", "test"),
        ("test/train-0.tar", "train"),
        ("test/val/0.tar", "val"),
        ("0000.parquet", "train"),
        ("retrieval/latest/contest.tar", "train"),
    ],
)
def test_splits_are_words_of_names(path, split):
    assert split_of_path(path) == split


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Train", "Val", "Test"),
        ("TRAINING", "Valid", "Testing"),
        ("training", "validation", "eval"),
        ("data/train", "data/dev", "data/test"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val", "ILSVRC2012_img_test_v10102019"),
        ("training_set/training_set", "valid_set/valid_set", "test_set/test_set"),
        ("data/seg_train/seg_train", "data/dev-01", "data/seg_test"),
    ],
)
def test_split_folders(tmp_path, names):
    for name, images in zip(names, ({"ant": 3, "bee": 2}, {"ant": 1, "bee": 1}, {"bee": 1}), strict=True):
        flat(tmp_path / name, **images)
    assert counts(tmp_path) == {"train": 5, "val": 2, "test": 1}


def test_numbered_folders_are_parts_of_one_split(tmp_path):
    for number, name in enumerate(("ant", "bee", "cat", "dog"), 1):
        flat(tmp_path / f"train.X{number}", **{name: 2})
    flat(tmp_path / "val.X", ant=1, bee=1, cat=1, dog=1)
    source = read_source(tmp_path)
    assert [c.id for c in source.classes] == ["ant", "bee", "cat", "dog"]
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 8, "val": 4}


@pytest.mark.parametrize("train", [".", "", "./"])
def test_a_folder_inside_of_another_splits_folder(tmp_path, train):
    flat(tmp_path, ant=3, bee=2)
    flat(tmp_path / "val", ant=1, bee=1)
    source = read_source(tmp_path, SourceOptions(splits={"train": train, "val": "val"}))
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 5, "val": 2}
    assert [c.id for c in source.classes] == ["ant", "bee"]


def test_images_in_the_root_that_a_layout_leaves_out_are_shown(tmp_path):
    tars = [("a.jpg", b"x"), ("a.cls", b"0"), ("b.jpg", b"y"), ("b.cls", b"1")]
    place(tmp_path / "train.tar", tar_bytes(tars))
    for number in range(2):
        place(tmp_path / f"{number}.jpg")
    notes = read_source(tmp_path, SourceOptions(layout="webdataset")).left_out.notes()
    assert notes == ["left out 2 files: not read with --layout webdataset (such as ./)"]


def test_named_splits(tmp_path):
    flat(tmp_path / "photos", ant=3, bee=2)
    flat(tmp_path / "held out", ant=1)
    flat(tmp_path / "more", ant=7)
    splits = {"train": "photos/", "val": "held out"}
    source = read_source(tmp_path, SourceOptions(splits=splits))
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 5, "val": 1}
    assert [(row.path, row.reason) for row in source.left_out.rows()] == [
        ("more/ant/", "outside of --splits (7 files)")
    ]


def test_a_class_named_like_a_split(tmp_path):
    flat(tmp_path, train=2, bus=3, test=1)
    refused(lambda: read_source(tmp_path), "train/ was read as the split train", "bus", "--layout classes")
    source = read_source(tmp_path, SourceOptions(layout="classes"))
    assert [c.id for c in source.classes] == ["bus", "test", "train"]


def test_class_tars_named_like_a_split_beside_others_are_classes(tmp_path):
    tars(tmp_path, "train_station", "bus", "train_track")
    assert [c.id for c in read_source(tmp_path).classes] == ["bus", "train_station", "train_track"]


def test_training_images_beside_a_validation_folder(tmp_path):
    flat(tmp_path, n01440764=2, n01443537=2)
    flat(tmp_path / "val", n01440764=1)
    assert counts(tmp_path) == {"train": 4, "val": 1}


def test_flat_validation_images_beside_class_folders(tmp_path):
    flat(tmp_path, n01440764=2, n01443537=2)
    place(tmp_path / "ILSVRC2012_val_00000001_n01443537.JPEG")
    assert counts(tmp_path) == {"train": 4, "val": 1}


def test_loose_images_beside_the_splits_are_left_out(tmp_path):
    flat(tmp_path / "train", ant=1, bee=1)
    place(tmp_path / "figure.png")
    source = read_source(tmp_path)
    assert [(row.path, row.reason) for row in source.left_out.rows()] == [
        ("figure.png", "an image beside the splits")
    ]


def split_twice(root):
    for name in ("val", "validation", "train"):
        flat(root / name, ant=1, bee=1)


def archive_twice(root):
    flat(root / "train", n01440764=1, n01443537=1)
    place(root / "ILSVRC2012_img_train.tar", tar_bytes([("n01440764_1.JPEG", b"x")]))


def classes_first(root):
    for name in ("ant", "bee"):
        flat(root / name, train=1, val=1)


def two_kinds(root):
    flat(root / "train", ant=1, bee=1)
    place(root / "train.tar", tar_bytes([("a.jpg", b"x"), ("a.cls", b"0"), ("b.jpg", b"y"), ("b.cls", b"1")]))


def two_vals(root):
    for name in ("train_set", "val_set", "val_blurred"):
        flat(root / name, ant=1, bee=1)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (split_twice, "the split val was found twice: val/ and validation/"),
        (archive_twice, "the split train was found twice: "),
        (two_vals, "the split val was found twice: val_blurred/ and val_set/"),
        (classes_first, "the split train was found twice: ant/train/ and bee/train/"),
        (two_kinds, "the split train was found twice: train/ and WebDataset tars"),
    ],
)
def test_a_split_in_two_places(tmp_path, write, message):
    write(tmp_path)
    refused(lambda: read_source(tmp_path), f"source {tmp_path}: {message}", "--splits")


def test_a_layout_chooses_among_kinds(tmp_path):
    two_kinds(tmp_path)
    source = read_source(tmp_path, SourceOptions(layout="webdataset"))
    assert [c.id for c in source.classes] == ["0", "1"]
    source = read_source(tmp_path, SourceOptions(layout="images"))
    assert [c.id for c in source.classes] == ["ant", "bee"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"splits": {"train": "nowhere"}},
            "--splits train=nowhere holds no images; images are in train, val",
        ),
        ({"splits": {"trian": "train"}}, "--splits trian=…: no such split"),
        ({"splits": {"val": "val"}, "val_fraction": 0.5}, "has its own validation images"),
        ({"splits": {"test": "val"}, "val_fraction": 0.5}, "has no training images, only test"),
        ({"splits": {"train": ".", "val": "./"}}, "--splits train=.,val=./: both name one folder"),
        ({"layout": "os"}, "layout is 'os'; did you mean"),
        ({"layout": "parquet"}, "no images found"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    flat(tmp_path / "train", ant=1, bee=1)
    flat(tmp_path / "val", ant=1, bee=1)
    refused(lambda: read_source(tmp_path, SourceOptions(**options)), message)
