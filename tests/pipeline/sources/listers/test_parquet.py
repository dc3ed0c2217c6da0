import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.folders import flat, place, refused
from helpers.hub_files import as_parquet, write_parquet

from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError
from pipeline.sharding.reader import read_samples
from pipeline.sources.base import UNKNOWN
from pipeline.sources.detection import read_source
from pipeline.storage.open import open_store


def rows(labels, name="a{}.jpg"):
    return [(b"data", name.format(k), label) for k, label in enumerate(labels)]


def data_of(source, scratch):
    """Bytes of the training images."""
    return list(read_samples(open_store(source.root), source.containers, scratch, source.splits["train"]))


# Files and splits


def test_the_hubs_imagenet_has_wnids_in_its_names_and_an_unlabeled_test_split(tree, tmp_path):
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "Shetland sheepdog"]
    source = read_source(as_parquet(tree, tmp_path, class_label=names))
    folders = read_source(tree)
    assert source.classes == tuple(ClassInfo(c.id, n) for c, n in zip(folders.classes, names, strict=True))
    for split in ("train", "val"):
        expected = [(s.key, s.label) for s in folders.splits[split]]
        assert sorted((s.key, s.label) for s in source.splits[split]) == sorted(expected)
    assert [(row.path, row.reason) for row in source.left_out.rows()] == [
        ("data/", "test images without labels (3 files)")
    ]


def test_splits_are_in_the_names(tmp_path):
    for name, stem in (("default/train/0000.PARQUET", "t"), ("default/val.parquet", "v")):
        write_parquet(tmp_path / name, rows([0, 1, 1], stem + "{}.jpg"))
    place(tmp_path / "README.md")
    source = read_source(tmp_path)
    assert source.layout == "parquet"
    for split, stem in (("train", "t"), ("val", "v")):
        assert [(s.path, s.label) for s in source.splits[split]] == [
            (f"{stem}0.jpg", 0),
            (f"{stem}1.jpg", 1),
            (f"{stem}2.jpg", 1),
        ]


def test_rows_and_containers_are_where_the_bytes_lie(tmp_path):
    write_parquet(tmp_path / "b-train.parquet", rows([0, 1, 0], "b{}.jpg"), row_group=2)
    write_parquet(tmp_path / "a-train.parquet", rows([0, 1], "a{}.jpg"))
    source = read_source(tmp_path)
    assert [(c.path, c.size) for c in source.containers] == [
        (path.name, path.stat().st_size) for path in sorted(tmp_path.iterdir())
    ]
    assert [(s.path, s.container, s.offset, s.size) for s in source.splits["train"]] == [
        ("a0.jpg", 0, 0, UNKNOWN),
        ("a1.jpg", 0, 1, UNKNOWN),
        ("b0.jpg", 1, 0, UNKNOWN),
        ("b1.jpg", 1, 1, UNKNOWN),
        ("b2.jpg", 1, 2, UNKNOWN),
    ]


def test_a_file_of_other_columns_is_no_part_of_a_source(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    pq.write_table(pa.table({"file_name": ["a"], "text": ["b"]}), tmp_path / "metadata.parquet")
    source = read_source(tmp_path)
    assert source.layout == "images"
    assert [row.path for row in source.left_out.rows()] == ["metadata.parquet"]


# Names


def test_names_are_the_last_part_of_the_path(tmp_path):
    given = [
        ("n01440764_10026_n01440764.JPEG", "n01440764_10026_n01440764.JPEG"),
        ("x/y/ILSVRC2012_val_00000293_n01440764.JPEG", "ILSVRC2012_val_00000293_n01440764.JPEG"),
        ("C:\\photos\\cat 1.png", "cat 1.png"),
        (None, "train_v1-000003"),
        ("", "train_v1-000004"),
    ]
    table = [(b"", path, "ab"[k % 2]) for k, (path, _) in enumerate(given)]
    write_parquet(tmp_path / "train.v1.parquet", table, row_group=4)
    in_rows = sorted(read_source(tmp_path).splits["train"], key=lambda s: s.offset)
    assert [s.path for s in in_rows] == [name for _, name in given]


# Columns


@pytest.mark.parametrize(
    "columns",
    [
        {
            "img": [{"bytes": b"a", "path": "x.jpg"}, {"bytes": b"b", "path": "y.jpg"}],
            "fine_label": [0, 1],
            "coarse_label": [0, 0],
        },
        {"image": [b"a", b"b"], "labels": pa.array([0, 1], pa.uint8())},
        {"image.bytes": [b"a", b"b"], "image.path": ["x.jpg", "y.jpg"], "label": [0, 1]},
        {"image": [{"path": "x.jpg", "bytes": b"a"}, {"path": "x.jpg", "bytes": b"b"}], "label": ["0", "1"]},
        {"image": [{"bytes": b"a"}, {"bytes": b"b"}], "label": pa.array(["0", "1"]).dictionary_encode()},
        {
            "image": pa.array([b"a", b"b"], pa.large_binary()),
            "label": pa.array(["0", "1"], pa.large_string()),
        },
    ],
)
def test_columns_of_other_names_and_types(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    source = read_source(tmp_path)
    assert [c.id for c in source.classes] == ["0", "1"]
    assert data_of(source, tmp_path / "spool") == [b"a", b"b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "label": [0]}, "no column image .*; its columns are: text (string), label (int64)"),
        ({"image": [b"a"]}, "no column label; its columns are: image (binary)"),
        ({"a": [1]}, "no column image .* and no column label; its columns are: a (int64)"),
        ({"image": ["a.jpg"], "label": [0]}, "no column image .*: image (string), label (int64)"),
        ({"image": [{"path": "a"}], "label": [0]}, "no column image .*: image (struct<path: string>)"),
        ({"image": [b"a"], "label": [0.5]}, "column label is double; it must hold integers or strings"),
        ({"image": [b"a"], "label": [True]}, "column label is bool; it must hold integers"),
    ],
)
def test_other_columns_are_named(tmp_path, columns, message):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table(columns), path)
    start, *rest = message.split(".*")
    refused(lambda: read_source(tmp_path), f"{path}: ", start, *rest)


# Labels


def test_files_that_name_labels_differently_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", rows([0, 1]), class_label=["a", "b"])
    write_parquet(tmp_path / "val.parquet", rows([0, 1], "v{}.jpg"), class_label=["b", "a"])
    message = "train.parquet and val.parquet name their labels differently"
    refused(lambda: read_source(tmp_path), message)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ('{"info": {"features": {"label": {"dtype": "int64"}, "tags": [{"dtype": "string"}]}}}', ["0", "1"]),
        ("{}", ["0", "1"]),
        (json.dumps({"info": {"features": {"label": {"names": ["b", "a"]}}}}), ["b", "a"]),
    ],
)
def test_metadata_may_name_the_labels(tmp_path, text, classes):
    given = pa.table({"image": [b"a", b"b"], "label": [0, 1]})
    pq.write_table(given.replace_schema_metadata({"huggingface": text}), tmp_path / "train.parquet")
    assert [c.id for c in read_source(tmp_path).classes] == classes


def test_damaged_metadata_are_named(tmp_path):
    given = pa.table({"image": [b"a"], "label": [0]}).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(given, tmp_path / "train.parquet")
    refused(lambda: read_source(tmp_path), "train.parquet: its Hugging Face metadata is damaged")


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:200],
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:4\n",
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, damage):
    path = write_parquet(tmp_path / "train.parquet", rows([0, 1] * 50))
    path.write_bytes(damage(path.read_bytes()))
    refused(lambda: read_source(tmp_path), f"{path}: no complete Parquet file (", "); download it again")


def test_any_damage_is_one_line_or_harmless(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", rows([0, 1] * 50), class_label=["a", "b"])
    good = path.read_bytes()
    caught = 0
    for at in range(0, len(good), 100):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        try:
            read_source(tmp_path)
        except UsageError:
            caught += 1
    assert caught > 30


def test_paths_instead_of_images_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", [(None, f"a{k}.jpg", k % 2) for k in range(12)])
    message = "paths instead of images (image.bytes is null in its first 12 rows)"
    refused(lambda: read_source(tmp_path), message)


def test_a_null_image_is_an_empty_one(tmp_path):
    table = [(b"a", "a.jpg", 0), (None, None, 1), (None, "c.jpg", 0), (b"d", "d.jpg", 1)]
    write_parquet(tmp_path / "train.parquet", table)
    source = read_source(tmp_path)
    assert [s.path for s in source.splits["train"]] == ["a.jpg", "c.jpg", "d.jpg", "train-000001"]
    assert data_of(source, tmp_path / "spool") == [b"a", b"", b"d", b""]
