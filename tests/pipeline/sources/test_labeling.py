"""Labels from class folders, file names, ImageNet's label files and tables."""

import json
import shutil
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.folders import flat, place, refused
from helpers.imagenet_files import named, tar_bytes, val_labels, write_devkit, write_kaggle, write_solution

from pipeline.dataset.manifest import ClassInfo
from pipeline.sources.base import SourceOptions
from pipeline.sources.detection import read_source

pytestmark = pytest.mark.usefixtures("scipy_once")


def paths(source, split):
    return [sample.path for sample in source.splits[split]]


def classes(source):
    return [info.id for info in source.classes]


# Class folders


def test_class_folders_are_training_data(tmp_path):
    flat(tmp_path, bee=1, ant=2)
    place(tmp_path / "ant" / "ant_00.jpg", bytes(1234))
    source = read_source(tmp_path)
    assert (source.root, source.layout) == (str(tmp_path), "images")
    assert source.notes == ["train: 3 images, 2 class folders"]
    assert source.classes == (ClassInfo("ant", "ant"), ClassInfo("bee", "bee"))
    assert [(s.path, s.label, s.key, s.size) for s in source.splits["train"]] == [
        ("ant/ant_00.jpg", 0, "ant_00", 1234),
        ("ant/ant_01.jpg", 0, "ant_01", len(b"not empty")),
        ("bee/bee_00.jpg", 1, "bee_00", len(b"not empty")),
    ]


def test_images_are_found_at_any_depth_and_in_every_format(tmp_path):
    flat(tmp_path, bee=1)
    suffixes = [
        "jpg",
        "JPG",
        "Jpeg",
        "jpe",
        "jfif",
        "png",
        "gif",
        "webp",
        "bmp",
        "tif",
        "TIFF",
        "ppm",
        "pgm",
        "avif",
        "HEIC",
    ]
    for number, suffix in enumerate(suffixes):
        place(tmp_path / "ant" / ("deep/" * (number % 3)) / f"{number:02d}.{suffix}")
    source = read_source(tmp_path)
    assert len(source.splits["train"]) == len(suffixes) + 1
    assert {s.label for s in source.splits["train"] if s.path.startswith("ant/")} == {0}


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    flat(tmp_path, bee=1)
    place(tmp_path / "ant" / "album.jpg" / "1.jpg")
    assert paths(read_source(tmp_path), "train") == ["ant/album.jpg/1.jpg", "bee/bee_00.jpg"]


@pytest.mark.parametrize("wrapper", ["", "images/", "a/b/"])
def test_folders_around_class_folders_are_no_classes(tmp_path, wrapper):
    flat(tmp_path / "train" / wrapper, ant=2, bee=1)
    flat(tmp_path / "val" / wrapper, bee=1)  # one class alone is a class, as it is one of training
    source = read_source(tmp_path)
    assert classes(source) == ["ant", "bee"]
    assert [s.label for s in source.splits["val"]] == [1]


def test_numeric_names_are_in_the_order_of_numbers(tmp_path):
    flat(tmp_path, **{str(n): 1 for n in range(11)})
    assert classes(read_source(tmp_path)) == [str(n) for n in range(11)]


def test_spellings_of_one_name_are_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    flat(tmp_path / "train", **{composed: 1, "ant": 1})
    flat(tmp_path / "val", **{apart: 1})
    source = read_source(tmp_path)
    assert classes(source) == ["ant", composed]
    assert [s.label for s in source.splits["val"]] == [1]
    flat(tmp_path / "train", **{apart: 1})
    refused(lambda: read_source(tmp_path), r"'cafe\u0301'", r"'caf\xe9'", "one name in two Unicode spellings")


@pytest.mark.parametrize("prefix", ["", "train"])
def test_names_come_from_the_mapping_file(tmp_path, prefix):
    flat(tmp_path / prefix, n01440764=1, n01443537=1, bee=1)
    place(tmp_path / "LOC_synset_mapping.txt", b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    assert read_source(tmp_path).classes == (
        ClassInfo("bee", "bee"),
        ClassInfo("n01440764", "tench, Tinca tinca"),
        ClassInfo("n01443537", "goldfish"),
    )


# ImageNet's label files


def test_the_nearest_label_file_counts(tmp_path, tree):
    root = write_kaggle(tmp_path, tree)
    write_solution(root, tree, dict.fromkeys(val_labels(tree), "n01440764"))
    write_solution(root / "ILSVRC", tree)
    labels = {s.key: classes(read_source(root))[s.label] for s in read_source(root).splits["val"]}
    assert labels == val_labels(tree)


@pytest.mark.parametrize("labels", [write_solution, write_devkit])
@pytest.mark.parametrize("base", ["", "ILSVRC/Data/CLS-LOC", "CLS-LOC"])
def test_flat_validation_images(tmp_path, tree, labels, base):
    root = write_kaggle(tmp_path, tree, base=base)
    (root / "LOC_val_solution.csv").unlink()
    labels(root, tree)
    source = read_source(root)
    assert {s.key: classes(source)[s.label] for s in source.splits["val"]} == val_labels(tree)
    assert source.classes[0].name == named("n01440764")
    assert any(row.reason == "test images without labels" for row in source.left_out.rows())


# Tables

ROWS = [("train/x/1.jpg", "ant"), ("train/y/2.jpg", "bee"), ("val/3.jpg", "ant")]


def as_csv(rows, separator=","):
    return "\n".join(
        ["image,species".replace(",", separator), *(separator.join(row) for row in rows)]
    ).encode()


def as_parquet(path, rows):
    pq.write_table(pa.table({"image": [p for p, _ in rows], "species": [c for _, c in rows]}), path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("short", [str, lambda path: path.rpartition("/")[2], lambda path: path[-5:-4]])
def test_a_table_of_labels(tmp_path, suffix, short):
    """It names paths, file names or stems."""
    for name, _ in ROWS:
        place(tmp_path / name)
    place(tmp_path / "train" / "unlisted.jpg")
    rows = [(short(path), label) for path, label in ROWS]
    table = tmp_path / f"table.{suffix}"
    if suffix == "parquet":
        as_parquet(table, rows)
    elif suffix == "jsonl":
        place(table, "\n".join(json.dumps({"image": p, "species": c}) for p, c in rows).encode())
    else:
        place(table, as_csv(rows, "," if suffix == "csv" else "\t"))
    source = read_source(tmp_path, SourceOptions(labels=table.name, label_column="species"))
    found = {s.path: classes(source)[s.label] for split in source.splits.values() for s in split}
    assert found == dict(ROWS)
    assert "train/unlisted.jpg" in {row.path for row in source.left_out.rows()}


def test_a_test_split_that_the_table_does_not_name_is_left_out(tmp_path):
    for name in ("train/1.jpg", "train/2.jpg", "test/3.jpg"):
        place(tmp_path / name)
    place(tmp_path / "train.csv", b"id,label\n1,ant\n2,bee\n")
    source = read_source(tmp_path, SourceOptions(labels="train.csv", path_column="id"))
    assert list(source.splits) == ["train"]
    assert [row.path for row in source.left_out.rows()] == ["test/3.jpg"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "tar"])
def test_labels_have_one_spelling_and_ids_may_be_0(tmp_path, kind):
    labels = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")] + ["bee"]
    if kind == "tar":
        members = (
            (f"{n}.{e}", d) for n, c in enumerate(labels) for e, d in (("jpg", b"x"), ("cls", c.encode()))
        )
        place(tmp_path / "train.tar", tar_bytes(list(members)))
    else:
        for number in range(3):
            place(tmp_path / f"{number}.jpg")
        if kind == "csv":
            rows = (f"{number},{label}" for number, label in enumerate(labels))
            place(tmp_path / "t.csv", "\n".join(["image,species", *rows]).encode())
        else:
            as_parquet(tmp_path / "t.parquet", list(enumerate(labels)))
    table = {} if kind == "tar" else {"labels": f"t.{kind}", "label_column": "species"}
    source = read_source(tmp_path, SourceOptions(**table))
    assert classes(source) == ["bee", labels[0]]
    assert len(source.splits["train"]) == 3


@pytest.mark.parametrize("row", ["{}", "/data/set/{}", "./{}"])
def test_a_row_with_a_folder_labels_no_image_of_another(tmp_path, row):
    listed = ["images/0.jpg", "images/1.jpg"]
    for name in (*listed, "masks/0.png", "masks/1.jpg"):
        place(tmp_path / name)
    rows = (f"{row.format(name)},{number}" for number, name in enumerate(listed))
    place(tmp_path / "t.csv", "\n".join(["path,label", *rows]).encode())
    source = read_source(tmp_path, SourceOptions(labels="t.csv"))
    assert paths(source, "train") == listed
    assert {row.path for row in source.left_out.rows()} == {"masks/0.png", "masks/1.jpg"}


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (["10", "9", "7.0"], ["7", "9", "10"]),
        (["-1", "9", "7"], ["7", "9"]),  # a negative number is no label
        (["v1", "10", "7.5"], ["10", "7.5", "v1"]),
    ],
)
def test_labels_in_tables_are_numbers_where_all_are(tmp_path, labels, ids):
    flat(tmp_path, ant=3)
    rows = (f"ant_{number:02d}.jpg,{label}" for number, label in enumerate(labels))
    place(tmp_path / "t.csv", "\n".join(["path,label", *rows]).encode())
    assert classes(read_source(tmp_path, SourceOptions(labels="t.csv"))) == ids


@pytest.mark.parametrize(
    ("name", "data", "columns", "message"),
    [
        (
            "t.csv",
            as_csv(ROWS),
            {},
            "which column holds the labels? The names in its first line are image, species",
        ),
        (
            "t.csv",
            as_csv(ROWS),
            {"label_column": "spices"},
            "no column spices; its columns are image, species",
        ),
        ("t.csv", b"", {}, "holds no rows"),
        ("t.csv", b"image,label\na.jpg,x\na.jpg,y\n", {}, "a.jpg has the labels x and y"),
        ("t.csv", b"image,label\na.jpg,\n", {}, "row 1 has the label ''"),
        ("t.csv", b"image,label\nz.jpg,x\n", {}, "none of its 1 rows names an image of train/"),
        ("t.jsonl", b'{"image": "a", "label": ["x", "y"]}\n', {}, "row 1 has several labels (['x', 'y'])"),
        ("t.jsonl", b"[1]\n", {}, "not a JSON object a line"),
        ("t.xls", b"?", {}, "give a .csv"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, name, data, columns, message):
    flat(tmp_path / "train", ant=1, bee=1)
    place(tmp_path / name, data)
    refused(lambda: read_source(tmp_path, SourceOptions(labels=name, **columns)), f"{name}: {message}")


WNIDS, NUMBERS = ("n01440764", "n01443537", "n01484850"), ("0", "2", "10")
EVALUATION_SETS = [
    ("imagenet-a.tar", "imagenet-a", WNIDS),
    ("imagenet-r.tar", "imagenet-r", WNIDS),
    ("ImageNet-Sketch.zip", "sketch", WNIDS),
    ("imagenetv2-matched-frequency.tar.gz", "imagenetv2-matched-frequency-format-val", NUMBERS),
]


@pytest.mark.parametrize(("archive", "folder", "ids"), EVALUATION_SETS)
def test_evaluation_sets_are_read_as_downloaded_and_as_unpacked(tmp_path, archive, folder, ids):
    """Classes that are numbers keep their order, which is that of ImageNet's sorted WNIDs."""
    flat(tmp_path / folder, **dict.fromkeys(ids, 2))
    place(tmp_path / folder / "README.txt")
    kind = {".zip": "zip", ".gz": "gztar"}.get(Path(archive).suffix, "tar")
    name = archive.partition(".")[0]
    shutil.make_archive(str(tmp_path / name), kind, tmp_path, folder)
    for source in (archive, folder):
        found = read_source(tmp_path / source, SourceOptions(splits={"test": "."}))
        assert {split: len(samples) for split, samples in found.splits.items()} == {"test": 6}
        assert classes(found) == list(ids)
