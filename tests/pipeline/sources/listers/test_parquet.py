import json
import shutil
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.folders import place, python, write_source
from helpers.hub_files import as_parquet, classes_of, flattened, images, write_parquet

from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError
from pipeline.sharding.reader import read_samples
from pipeline.sources.base import UNKNOWN
from pipeline.sources.detection import read_source
from pipeline.sources.listers.parquet import detect
from pipeline.storage.open import open_store

WNIDS = ("n01440764", "n01443537", "n01484850")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Class folders with ImageNet's names: three classes, each with 8 training and 4 validation images."""
    root = write_source(tmp_path_factory.mktemp("tree") / "tree", classes=WNIDS, height=16, width=16)
    for number, (class_id, path) in enumerate(images(root, "train")):
        path.rename(path.with_name(f"{class_id}_{number}.JPEG"))
    for number, (_, path) in enumerate(images(root, "val")):
        path.rename(path.with_name(f"ILSVRC2012_val_{number:08d}.JPEG"))
    return root


def rows(labels, name="a{}.jpg"):
    return [(b"data", name.format(k), label) for k, label in enumerate(labels)]


def one_file(folder, labels, **options):
    write_parquet(folder / "train.parquet", rows(labels), **options)
    return folder


def labels_of(source, split="train"):
    return [(s.path, s.label) for s in source.splits[split]]


# The same as class folders


def test_the_hubs_imagenet_is_the_class_folders(tree, tmp_path):
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark"]
    source = read_source(as_parquet(tree, tmp_path, class_label=names))
    folders = read_source(tree, "folders")
    assert source.layout == "parquet"
    assert source.classes == tuple(map(ClassInfo, WNIDS, names))
    assert flattened(source)[1] == flattened(folders)[1]
    assert source.notes == ["test: its 3 images have no labels, left out"]


def test_names_of_the_mapping_file_come_first(tree, tmp_path):
    both = [shutil.copytree(tree, tmp_path / "tree"), as_parquet(tree, tmp_path / "hub", class_label="abc")]
    for root in both:
        place(root / "LOC_synset_mapping.txt", b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    folders, hub = map(read_source, both)
    assert flattened(hub)[1] == flattened(folders)[1]
    assert hub.classes == (
        ClassInfo("n01440764", "tench, Tinca tinca"),
        ClassInfo("n01443537", "goldfish"),
        ClassInfo("n01484850", "c"),
    )


def test_real_imagenet_files_give_the_same_keys_labels_and_bytes(shared_data, tmp_path):
    folders = shared_data / "imagenet-sample"
    hub = as_parquet(folders, tmp_path / "hub", files=3)
    first, second = read_source(folders), read_source(hub)
    assert flattened(first) == flattened(second)
    for split in ("train", "val"):
        path_of = {s.key: s.path for s in first.splits[split]}
        chosen = second.splits[split][::7]
        read = read_samples(open_store(hub), second.containers, tmp_path / "spool", chosen)
        for sample, data in zip(chosen, read, strict=True):
            assert data == (folders / path_of[sample.key]).read_bytes()


def test_original_names_learn_the_wnids_of_validation_labels_from_training(tree, tmp_path):
    hub = as_parquet(tree, tmp_path, name=lambda path, class_id: f"some/folder/{path.name}")
    assert flattened(read_source(hub)) == flattened(read_source(tree))


def test_labels_in_another_order_than_wnids_are_sorted_wnids(tree, tmp_path):
    hub = as_parquet(tree, tmp_path, label=lambda class_id: 7 - classes_of(tree).index(class_id))
    assert flattened(read_source(hub)) == flattened(read_source(tree))


def test_labels_may_be_wnids_as_texts(tree, tmp_path):
    hub = as_parquet(tree, tmp_path, label=str, with_test=False)
    assert flattened(read_source(hub)) == flattened(read_source(tree))


def test_a_class_label_of_wnids_needs_no_names_of_files(tree, tmp_path):
    hub = as_parquet(tree, tmp_path, name=lambda path, _: path.name.replace("n0", "x0"), class_label=WNIDS)
    source = read_source(hub)
    assert source.classes == tuple(map(ClassInfo, WNIDS, WNIDS))
    assert {s.key: s.label for s in source.splits["train"]} == {
        s.key.replace("n0", "x0"): s.label for s in read_source(tree).splits["train"]
    }


def test_from_a_bucket(tree, tmp_path, s3):
    local = as_parquet(tree, tmp_path / "hub")
    fs = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    fs.put(str(local), f"{s3}/hub", recursive=True)
    source, folders = read_source(f"{s3}/hub"), read_source(tree)
    assert source.layout == "parquet"
    assert flattened(source) == flattened(folders)
    samples = source.splits["train"]
    read = list(read_samples(open_store(f"{s3}/hub"), source.containers, tmp_path / "spool", samples))
    path_of = {s.key: s.path for s in folders.splits["train"]}
    assert read == [(tree / path_of[s.key]).read_bytes() for s in samples]


# Files and splits


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00294.parquet", "data/validation-00000-of-00014.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("default/train/0000.parquet", "default/val/0000.parquet"),
        ("default/partial-train/0000.PARQUET", "default/partial-validation/0000.PARQUET"),
        ("all.parquet", "val.parquet"),
        ("my_train_v2.parquet", "my_dev_v2.parquet"),
    ],
)
def test_splits_are_in_the_names(tmp_path, names):
    for name, stem in zip(names, "tv", strict=True):
        write_parquet(tmp_path / name, rows([0, 1, 1], stem + "{}.jpg"))
    place(tmp_path / "README.md")
    source = read_source(tmp_path)
    assert source.layout == "parquet"
    assert labels_of(source, "train") == [("t0.jpg", 0), ("t1.jpg", 1), ("t2.jpg", 1)]
    assert labels_of(source, "val") == [("v0.jpg", 0), ("v1.jpg", 1), ("v2.jpg", 1)]


def test_rows_and_containers_are_where_the_bytes_lie(tmp_path):
    write_parquet(tmp_path / "b-train.parquet", rows([0, 1, 0], "b{}.jpg"), row_group=2)
    write_parquet(tmp_path / "a-train.parquet", rows([0, 1], "a{}.jpg"))
    source = read_source(tmp_path)
    assert [c.path for c in source.containers] == ["a-train.parquet", "b-train.parquet"]
    assert [c.size for c in source.containers] == [
        (tmp_path / c.path).stat().st_size for c in source.containers
    ]
    assert [(s.path, s.container, s.offset, s.size) for s in source.splits["train"]] == [
        ("a0.jpg", 0, 0, UNKNOWN),
        ("a1.jpg", 0, 1, UNKNOWN),
        ("b0.jpg", 1, 0, UNKNOWN),
        ("b1.jpg", 1, 1, UNKNOWN),
        ("b2.jpg", 1, 2, UNKNOWN),
    ]


def test_one_file_may_be_named(tmp_path):
    one_file(tmp_path, [0, 1])
    assert read_source(tmp_path / "train.parquet").layout == "parquet"


def test_class_folders_beside_files_of_other_columns_are_class_folders(tmp_path):
    write_source(tmp_path, height=8, width=8)
    pq.write_table(pa.table({"file_name": ["a"], "text": ["b"]}), tmp_path / "metadata.parquet")
    assert not detect(open_store(tmp_path))
    place(tmp_path / "damaged" / "a.parquet")
    assert not detect(open_store(tmp_path))


def test_parquet_beside_images_of_a_readme(tmp_path):
    one_file(tmp_path / "data", [0, 1])
    place(tmp_path / "assets" / "figure.png")
    place(tmp_path / "logo.png")
    assert detect(open_store(tmp_path))


def test_looking_for_parquet_does_not_walk_a_large_tree(tmp_path, monkeypatch):
    for number in range(200):
        place(tmp_path / "train" / f"c{number:03d}" / "a.jpg")
    store = open_store(tmp_path)
    listed = []
    names = store.names
    monkeypatch.setattr(store, "names", lambda folder="": listed.append(folder) or names(folder))
    assert not detect(store)
    assert {"", "train", "train/c000"} <= set(listed)
    assert len(listed) < 100


# Names


def test_names_are_the_last_part_without_the_wnid_behind(tmp_path):
    given = [
        ("n01440764_10026_n01440764.JPEG", "n01440764_10026.JPEG"),
        ("x/y/ILSVRC2012_val_00000293_n01440764.JPEG", "ILSVRC2012_val_00000293.JPEG"),
        ("C:\\photos\\cat 1.png", "cat 1.png"),
        ("n01440764_1_n01440764_2.JPEG", "n01440764_1_n01440764_2.JPEG"),
        ("a_n0144076.JPEG", "a_n0144076.JPEG"),
        ("a_n014407640.JPEG", "a_n014407640.JPEG"),
        ("été_n01440764", "été"),
        (None, "train-000007"),
        ("", "train-000008"),
    ]
    table = [(b"", path, "ab"[k % 2]) for k, (path, _) in enumerate(given)]
    write_parquet(tmp_path / "train.parquet", table, row_group=4)
    source = read_source(tmp_path)
    in_rows = sorted(source.splits["train"], key=lambda s: s.offset)
    assert [s.path for s in in_rows] == [name for _, name in given]


def test_rows_without_any_paths_are_named_by_file_and_row(tmp_path):
    schema = {"image": pa.array([b"a", b"b"]), "label": pa.array([0, 1])}
    for name in ("data/train.v1.parquet", "data/validation.v1.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(schema), tmp_path / name)
    source = read_source(tmp_path)
    assert [s.key for s in source.splits["train"]] == ["train_v1-000000", "train_v1-000001"]
    assert [s.key for s in source.splits["val"]] == ["validation_v1-000000", "validation_v1-000001"]


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
    samples = source.splits["train"]
    data = list(read_samples(open_store(tmp_path), source.containers, tmp_path / "spool", samples))
    assert data == [b"a", b"b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "label": [0]}, "no column image .*; its columns are: text (string), label (int64)"),
        ({"image": [b"a"]}, "no column label; its columns are: image (binary)"),
        ({"a": [1]}, "no column image .* and no column label; its columns are: a (int64)"),
        ({"image": ["a.jpg"], "label": [0]}, "no column image .*: image (string), label (int64)"),
        ({"image": [{"path": "a"}], "label": [0]}, "no column image .*: image (struct<path: string>)"),
        ({"image": [b"a"], "label": [0.5]}, "column label is double; it must hold integers or strings"),
        ({"image": [b"a"], "label": [[1, 2]]}, "column label is list<.*>; it must hold integers"),
        ({"image": [b"a"], "label": [True]}, "column label is bool; it must hold integers"),
    ],
)
def test_other_columns_are_named(tmp_path, columns, message):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table(columns), path)
    pattern = message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(UsageError, match=rf"^{path}: {pattern}"):
        read_source(tmp_path)


# Labels


def test_numbers_without_names_keep_their_order(tmp_path):
    source = read_source(one_file(tmp_path, [10, 2, 2, 100]))
    assert [c.id for c in source.classes] == ["002", "010", "100"]
    assert labels_of(source) == [("a0.jpg", 1), ("a1.jpg", 0), ("a2.jpg", 0), ("a3.jpg", 2)]


def test_numbers_get_the_class_labels_names_in_its_order(tmp_path):
    source = read_source(one_file(tmp_path, [1, 0, 3], class_label=["zebra", "ant", "unused", "bee"]))
    assert [c.id for c in source.classes] == ["zebra", "ant", "bee"]
    assert labels_of(source) == [("a0.jpg", 1), ("a1.jpg", 0), ("a2.jpg", 2)]


def test_names_given_twice_stay_two_classes(tmp_path):
    source = read_source(one_file(tmp_path, [0, 1, 2], class_label=["crane", "ant", "crane"]))
    assert [c.id for c in source.classes] == ["crane 0", "ant", "crane 2"]


def test_texts_are_classes_in_sorted_order(tmp_path):
    source = read_source(one_file(tmp_path, ["zebra", "ant", "bee", "10", "9"]))
    assert [c.id for c in source.classes] == ["10", "9", "ant", "bee", "zebra"]


def test_a_test_split_with_labels_stays(tmp_path):
    write_parquet(tmp_path / "train.parquet", rows([0, 1]))
    write_parquet(tmp_path / "test.parquet", rows([1, 0], "t{}.jpg"))
    assert labels_of(read_source(tmp_path), "test") == [("t0.jpg", 1), ("t1.jpg", 0)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1, None], "a1.jpg has no label; 2 of 4 train images"),
        ([0, 1, -1], "a2.jpg has no label; 1 of 3 train images"),
        (["ant", "", "bee"], "a1.jpg has no label; 1 of 3 train images"),
        ([-1, -1], "a0.jpg has no label; 2 of 2 train images"),
    ],
)
def test_training_images_without_labels_are_refused(tmp_path, labels, message):
    with pytest.raises(UsageError, match=rf"^{tmp_path}/train.parquet: {message} have none: add labels"):
        read_source(one_file(tmp_path, labels))


def test_a_validation_image_without_a_label_is_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", rows([0, 1]))
    write_parquet(tmp_path / "val.parquet", rows([0, None], "v{}.jpg"))
    with pytest.raises(UsageError, match=r"val.parquet: v1.jpg has no label; 1 of 2 val images"):
        read_source(tmp_path)


def test_one_label_of_two_wnids_is_refused(tmp_path):
    names = ["n00000001_1.JPEG", "n00000002_1.JPEG", "n00000003_2.JPEG"]
    table = [(b"", name, label) for name, label in zip(names, [0, 1, 1], strict=True)]
    write_parquet(tmp_path / "train.parquet", table)
    with pytest.raises(
        UsageError, match=r"n00000002_1.JPEG has label 1 and WNID n00000002, n00000003_2.JPEG .* n00000003"
    ):
        read_source(tmp_path)


def test_two_labels_of_one_wnid_are_refused(tmp_path):
    names = ["n00000001_1.JPEG", "n00000002_1.JPEG", "n00000002_2.JPEG"]
    table = [(b"", name, label) for label, name in enumerate(names)]
    write_parquet(tmp_path / "train.parquet", table)
    with pytest.raises(UsageError, match=r"n00000002_1.JPEG has label 1 .*, n00000002_2.JPEG label 2"):
        read_source(tmp_path)


def test_texts_group_images_of_several_wnids(tmp_path):
    names = ["n00000001_1.JPEG", "n00000002_1.JPEG", "n00000003_2.JPEG"]
    table = [(b"", name, label) for name, label in zip(names, ["cat", "dog", "dog"], strict=True)]
    write_parquet(tmp_path / "train.parquet", table)
    assert [c.id for c in read_source(tmp_path).classes] == ["cat", "dog"]


def test_a_number_beyond_the_names_is_refused(tmp_path):
    with pytest.raises(UsageError, match="label 2 occurs, but only the labels 0 to 1 have names"):
        read_source(one_file(tmp_path, [0, 1, 2], class_label=["a", "b"]))


def test_numbers_beside_texts_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", rows([0, 1]))
    write_parquet(tmp_path / "val.parquet", rows(["ant"], "v{}.jpg"))
    with pytest.raises(
        UsageError, match=r"some labels are numbers and others strings: 0 of a0.jpg, but 'ant' of v0.jpg"
    ):
        read_source(tmp_path)


def test_files_that_name_labels_differently_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", rows([0, 1]), class_label=["a", "b"])
    write_parquet(tmp_path / "val.parquet", rows([0, 1], "v{}.jpg"), class_label=["b", "a"])
    with pytest.raises(UsageError, match=r"train.parquet and val.parquet name their labels differently"):
        read_source(tmp_path)


# Damage


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file_is_one_line(tmp_path, keep):
    path = write_parquet(tmp_path / "train.parquet", rows([0, 1] * 50))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        UsageError, match=rf"^{path}: no complete Parquet file \(.*\); download it again$"
    ) as e:
        read_source(tmp_path)
    assert "\n" not in str(e.value)


def test_any_damage_is_one_line_or_harmless(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", rows([0, 1] * 50), class_label=["a", "b"])
    good = path.read_bytes()
    refused = 0
    for at in range(0, len(good), 30):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        try:
            read_source(tmp_path)
        except UsageError:
            refused += 1
    assert refused > 100


def test_a_git_lfs_pointer_is_no_parquet_file(tmp_path):
    place(
        tmp_path / "data" / "train-0.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:4\n"
    )
    with pytest.raises(UsageError, match=r"train-0.parquet: no complete Parquet file"):
        read_source(tmp_path)


def test_paths_instead_of_images_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", [(None, f"a{k}.jpg", k % 2) for k in range(12)])
    with pytest.raises(
        UsageError, match=r"paths instead of images \(image.bytes is null in its first 12 rows\)"
    ):
        read_source(tmp_path)


def test_a_null_image_is_an_empty_one(tmp_path):
    table = [(b"a", "a.jpg", 0), (None, None, 1), (None, "c.jpg", 0), (b"d", "d.jpg", 1)]
    write_parquet(tmp_path / "train.parquet", table)
    source = read_source(tmp_path)
    samples = source.splits["train"]
    assert [s.path for s in samples] == ["a.jpg", "c.jpg", "d.jpg", "train-000001"]
    data = list(read_samples(open_store(tmp_path), source.containers, tmp_path / "spool", samples))
    assert data == [b"a", b"", b"d", b""]


def test_damaged_metadata_are_named(tmp_path):
    given = pa.table({"image": [b"a"], "label": [0]}).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(given, tmp_path / "train.parquet")
    with pytest.raises(UsageError, match=r"train.parquet: its Hugging Face metadata is damaged"):
        read_source(tmp_path)


def test_other_metadata_are_left_alone(tmp_path):
    features = {"label": {"dtype": "int64", "_type": "Value"}, "tags": [{"dtype": "string"}]}
    for text in (json.dumps({"info": {"features": features}}), "{}", '{"info": {}}'):
        given = pa.table({"image": [b"a", b"b"], "label": [0, 1]})
        pq.write_table(given.replace_schema_metadata({"huggingface": text}), tmp_path / "train.parquet")
        assert [c.id for c in read_source(tmp_path).classes] == ["0", "1"]


def test_no_files_are_no_images(tmp_path):
    with pytest.raises(UsageError, match="no images found"):
        read_source(tmp_path, "parquet")


def test_pyarrow_is_imported_for_parquet_alone(tmp_path):
    write_source(tmp_path, height=8, width=8)
    code = "import sys; from pipeline.sources.detection import read_source; read_source(sys.argv[1]);"
    process = python(f"{code} assert 'pyarrow' not in sys.modules", tmp_path)
    assert process.wait() == 0
    assert "pyarrow" in sys.modules
