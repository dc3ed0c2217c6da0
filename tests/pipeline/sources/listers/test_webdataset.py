import gzip
import io
import json
import shutil
import tarfile

import fsspec
import pytest
from helpers.folders import draw_image, encoded, place, write_source
from helpers.hub_files import as_webdataset, classes_of, flattened, images, write_tar
from hypothesis import given, strategies as st
from webdataset.tariterators import group_by_keys, tar_file_iterator

from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError
from pipeline.sharding.reader import read_samples
from pipeline.sources.detection import read_source
from pipeline.sources.listers.webdataset import detect
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


def tar(path, *members):
    """Write a tar of (name, bytes) members, in this order, with Python's tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def by_library(path):
    """Return the samples that the webdataset library reads from a tar."""
    with path.open("rb") as file:
        members = [member | {"__url__": str(path)} for member in tar_file_iterator(file)]
    return list(group_by_keys(members))


def listed(root, split="train"):
    source = read_source(root, "webdataset")
    return [(s.path, source.classes[s.label].id) for s in source.splits[split]]


def data_of(root, source, split, scratch):
    samples = source.splits[split]
    read = read_samples(open_store(root), source.containers, scratch, samples)
    return {s.key: data for s, data in zip(samples, read, strict=True)}


# The same as class folders


@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_shards_of_imagenet_are_the_class_folders(tree, tmp_path, kind, suffix):
    root = as_webdataset(tree, tmp_path / "tars", kind, per_tar=7, suffix=suffix)
    source, folders = read_source(root), read_source(tree)
    assert source.layout == "webdataset"
    assert len(source.containers) == 4 + 2
    assert flattened(source) == flattened(folders)
    for split in ("train", "val"):
        expected = data_of(tree, folders, split, tmp_path / "none")
        assert data_of(root, source, split, tmp_path / "spool") == expected


def test_texts_are_classes(tree, tmp_path):
    root = as_webdataset(tree, tmp_path, "cls", label=str)
    assert flattened(read_source(root)) == flattened(read_source(tree))


def test_names_come_from_the_mapping_file(tree, tmp_path):
    root = as_webdataset(tree, tmp_path)
    place(root / "LOC_synset_mapping.txt", b"n01440764 tench, Tinca tinca\n")
    assert read_source(root).classes[:2] == (
        ClassInfo("n01440764", "tench, Tinca tinca"),
        ClassInfo("n01443537", "n01443537"),
    )


def test_from_a_bucket(tree, tmp_path, s3):
    local = as_webdataset(tree, tmp_path / "tars")
    fs = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    fs.put(str(local), f"{s3}/tars", recursive=True)
    source = read_source(f"{s3}/tars")
    assert source.layout == "webdataset"
    assert flattened(source) == flattened(read_source(tree))
    expected = data_of(tree, read_source(tree), "val", tmp_path / "none")
    assert data_of(f"{s3}/tars", source, "val", tmp_path / "spool") == expected


def test_a_dataset_of_ours_keeps_its_classes(tiny_dataset, tmp_path):
    folder = tiny_dataset.root
    source = read_source(folder)
    assert source.layout == "webdataset"
    assert source.classes == tiny_dataset.manifest.classes
    for split in ("train", "val"):
        expected = {}
        for path in sorted((folder / split).glob("*.tar")):
            for sample in by_library(path):
                expected[sample["__key__"]] = (sample["jpg"], int(sample["cls"]))
        data = data_of(folder, source, split, tmp_path)
        assert {s.key: (data[s.key], s.label) for s in source.splits[split]} == expected


def test_a_label_beyond_our_manifest_is_refused(tiny_dataset, tmp_path):
    shutil.copy(tiny_dataset.root / "manifest.json", tmp_path)
    tar(tmp_path / "train.tar", ("a.jpg", b"a"), ("a.cls", b"10"))
    with pytest.raises(UsageError, match="label 10 occurs, but only the labels 0 to 9 have names"):
        read_source(tmp_path)


def test_another_manifest_is_no_manifest_of_ours(tmp_path):
    tar(tmp_path / "train.tar", ("a.jpg", b"a"), ("a.cls", b"0"), ("b.jpg", b"b"), ("b.cls", b"1"))
    place(tmp_path / "manifest.json", b'{"classes": 2}')
    assert listed(tmp_path) == [("a.jpg", "0"), ("b.jpg", "1")]
    place(tmp_path / "manifest.json", b'{"classes": ')
    with pytest.raises(UsageError, match=r"manifest.json: damaged"):
        read_source(tmp_path)


# Tars and splits


@pytest.mark.parametrize(
    "names",
    [
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("train/000000.tar", "val/000000.tar"),
        ("a/b/c/train.tar", "a/b/c/dev.TAR"),
        ("shards/0.tar", "val.tgz"),
    ],
)
def test_splits_are_in_the_names(tmp_path, names):
    for name, key in zip(names, "tv", strict=True):
        members = [
            (f"{key}{k}.{ext}", data) for k in "01" for ext, data in (("jpg", b"x"), ("cls", k.encode()))
        ]
        path = tar(tmp_path / name, *members)
        assert path.is_file()
    place(tmp_path / "README.md")
    source = read_source(tmp_path)
    assert source.layout == "webdataset"
    assert [s.path for s in source.splits["train"]] == ["t0.jpg", "t1.jpg"]
    assert [s.path for s in source.splits["val"]] == ["v0.jpg", "v1.jpg"]


def test_archives_of_imagenet_are_left_to_another_lister(tmp_path):
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        place(tmp_path / name)
    assert not detect(open_store(tmp_path))


def test_class_folders_beside_the_archive_they_came_in_are_class_folders(tmp_path):
    write_source(tmp_path / "tree", height=8, width=8)
    for name, mode in (("tree.tar", "w"), ("tree.tgz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(tmp_path / "tree", "tree")
    (tmp_path / "tree" / "train").rename(tmp_path / "train")
    assert not detect(open_store(tmp_path))
    place(tmp_path / "broken.tar")
    assert not detect(open_store(tmp_path))


def test_tars_of_samples_beside_images_are_webdataset(tree, tmp_path):
    root = as_webdataset(tree, tmp_path)
    place(root / "examples" / "some.jpg")
    assert detect(open_store(root))


# Samples


def test_members_are_grouped_by_key(tmp_path):
    tar(
        tmp_path / "train.tar",
        ("./x/a.jpg", b"1"),
        ("./x/a.txt", b"a caption"),
        ("./x/a.cls", b"cat\n"),
        ("y/a.cls", b" dog"),
        ("y/a.JPEG", b"2"),
        ("y.z/b.Png", b"3"),
        ("y.z/b.CLS", b"cat"),
        ("README.txt", b"hello"),
        ("__meta__/c.jpg", b"-"),
        ("._d.jpg", b"-"),
        ("x/._d.cls", b"-"),
    )
    assert listed(tmp_path) == [("x/a.jpg", "cat"), ("y.z/b.Png", "cat"), ("y/a.JPEG", "dog")]


def test_cls_counts_before_json(tmp_path):
    fields = json.dumps({"label": "wrong"}).encode()
    tar(
        tmp_path / "t.tar",
        ("a.json", fields),
        ("a.jpg", b""),
        ("a.cls", b"x"),
        ("b.jpg", b""),
        ("b.cls", b"y"),
    )
    assert listed(tmp_path) == [("a.jpg", "x"), ("b.jpg", "y")]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"label": 3, "cls": 4}, "3"),
        ({"label": None, "cls": 4, "class": 5}, "4"),
        ({"class": 5, "class_id": 6}, "5"),
        ({"class_id": 6, "target": 7}, "6"),
        ({"target": "7", "text": "8"}, "7"),
        ({"label": 0, "filename": "a.jpg"}, "0"),
    ],
)
def test_labels_in_json(tmp_path, fields, expected):
    tar(
        tmp_path / "t.tar",
        ("a.jpg", b"a"),
        ("a.json", json.dumps(fields).encode()),
        ("b.jpg", b"b"),
        ("b.json", b'{"label": 9}'),
    )
    assert listed(tmp_path) == [("a.jpg", expected), ("b.jpg", "9")]


def test_digits_are_numbers_where_all_labels_are(tmp_path):
    members = [
        (f"{k}.{e}", d) for k, t in enumerate(["0010", "9", "0009"]) for e, d in (("jpg", b""), ("cls", t))
    ]
    encoded_members = [(name, data if isinstance(data, bytes) else data.encode()) for name, data in members]
    tar(tmp_path / "t.tar", *encoded_members, ("3.jpg", b""), ("3.json", b'{"label": 10}'))
    assert listed(tmp_path) == [("0.jpg", "10"), ("1.jpg", "09"), ("2.jpg", "09"), ("3.jpg", "10")]


def test_digits_are_texts_beside_other_texts(tmp_path):
    tar(tmp_path / "t.tar", ("a.jpg", b""), ("a.cls", b"007"), ("b.jpg", b""), ("b.cls", b"bond"))
    assert listed(tmp_path) == [("a.jpg", "007"), ("b.jpg", "bond")]


def test_equal_keys_in_one_tar_stay_two_images(tmp_path):
    members = [("a.jpg", b"1"), ("a.cls", b"x"), ("a.jpg", b"2"), ("a.cls", b"y")]
    tar(tmp_path / "train.tar", *members)
    source = read_source(tmp_path)
    assert data_of(tmp_path, source, "train", tmp_path / "none") == {"x-a": b"1", "y-a": b"2"}
    assert [source.classes[s.label].id for s in source.splits["train"]] == ["x", "y"]


def test_images_that_go_with_another(tmp_path):
    names = ["a.jpg", "a.mask.png", "a.png", "a.cls", "b.image.jpg", "b.cls", "c.cls", "c.thumb.jpg", "c.jpg"]
    tar(tmp_path / "t.tar", *[(name, b"x" if name[0] == "a" else b"y") for name in names])
    assert listed(tmp_path) == [("a.jpg", "x"), ("b.image.jpg", "y"), ("c.jpg", "y")]


def test_names_with_dots(tmp_path):
    members = [
        (f"im.v1.{k}.{e}", d) for k in "123" for e, d in (("jpg", b"p" + k.encode()), ("cls", k.encode()))
    ]
    tar(tmp_path / "t.tar", *members)
    source = read_source(tmp_path)
    assert [(s.key, s.label) for s in source.splits["train"]] == [
        ("im%2Ev1%2E1", 0),
        ("im%2Ev1%2E2", 1),
        ("im%2Ev1%2E3", 2),
    ]
    assert list(data_of(tmp_path, source, "train", tmp_path / "none").values()) == [b"p1", b"p2", b"p3"]


def test_long_and_non_ascii_names(tmp_path):
    long, unicode = "x" * 300, "Ünï ćode 猫"
    tar(
        tmp_path / "t.tar",
        (f"{long}.jpg", b"1"),
        (f"{long}.cls", b"a"),
        (f"{unicode}.jpg", b"2"),
        (f"{unicode}.cls", b"b"),
    )
    assert listed(tmp_path) == [(f"{long}.jpg", "a"), (f"{unicode}.jpg", "b")] or listed(tmp_path) == [
        (f"{unicode}.jpg", "b"),
        (f"{long}.jpg", "a"),
    ]


KEYS = st.lists(
    st.from_regex(r"([a-z]{1,2}/){0,2}[a-z0-9_-]{1,4}", fullmatch=True), min_size=2, max_size=12, unique=True
)


@given(KEYS, st.data())
def test_samples_are_those_of_the_webdataset_library(tmp_path_factory, keys, data):
    folder = tmp_path_factory.mktemp("tars")
    samples = []
    for number, key in enumerate(keys):
        suffix = data.draw(st.sampled_from(["jpg", "jpeg", "png", "JPG", "webp"]))
        content = encoded(draw_image(number, 8, 8))[: data.draw(st.integers(0, 400))]
        extra = data.draw(
            st.dictionaries(st.sampled_from(["txt", "npy", "a.b", "seg.bin"]), st.binary(max_size=9))
        )
        label = str(0 if number == 0 else data.draw(st.integers(0, 3))).encode()
        samples.append({"__key__": key, suffix: content, "cls": b"4" if number == 1 else label, **extra})
    write_tar(folder / "train-0.tar", samples)
    expected = {}
    for sample in by_library(folder / "train-0.tar"):
        content = next(v for k, v in sample.items() if k in ("jpg", "jpeg", "png", "webp"))
        expected[sample["__key__"]] = (content, int(sample["cls"]))
    source = read_source(folder)
    read = read_samples(open_store(folder), source.containers, folder, source.splits["train"])
    found = {
        s.path.rpartition(".")[0]: (content, int(source.classes[s.label].id))
        for s, content in zip(source.splits["train"], read, strict=True)
    }
    assert found == expected
    shutil.rmtree(folder)


# Bad input


def test_a_sample_without_a_label_is_named(tmp_path):
    path = tar(tmp_path / "train.tar", ("a.jpg", b""), ("b.jpg", b""), ("b.cls", b"0"), ("c.jpg", b""))
    with pytest.raises(UsageError, match=rf"^{path}: a.jpg has no label; 2 of 3 train images"):
        read_source(tmp_path)


def test_json_without_a_label_field_is_no_label(tmp_path):
    tar(tmp_path / "train.tar", ("a.jpg", b""), ("a.json", b'{"width": 3}'), ("info.json", b"{}"))
    with pytest.raises(UsageError, match=r"train.tar: a.jpg has no label; 1 of 1"):
        read_source(tmp_path)


def test_a_test_split_without_labels_is_left_out(tmp_path):
    tar(tmp_path / "train.tar", ("a.jpg", b""), ("a.cls", b"0"), ("b.jpg", b""), ("b.cls", b"1"))
    tar(tmp_path / "test.tar", ("t0.jpg", b""), ("t1.jpg", b""))
    source = read_source(tmp_path)
    assert list(source.splits) == ["train"]
    assert source.notes == ["test: its 2 images have no labels, left out"]


def test_a_sample_without_an_image_is_named(tmp_path):
    first = tar(tmp_path / "a-train.tar", ("a.jpg", b""), ("a.cls", b"0"), ("b.cls", b"1"))
    tar(tmp_path / "b-train.tar", ("c.cls", b"1"), ("d.json", b'{"label": 1}'))
    with pytest.raises(
        UsageError,
        match=rf"^{first}: b.cls has no image beside it, and 2 more labels have none; add images",
    ):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.cls", b"\xff\xfe", "a.cls is no label"),
        ("a.json", b'{"label": ', "a.json is no label"),
        ("a.json", b'{"label": 1.5}', r"a.json has the label 1.5; it must be an integer or a string"),
        ("a.json", b'{"label": true}', r"a.json has the label True; it must be"),
        ("a.json", b'{"label": [1]}', r"a.json has the label \[1\]; it must be"),
        ("a.cls", bytes(2**24 + 1), "a.cls has 16,777,217 bytes, too many for a label"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path, name, data, message):
    path = tar(tmp_path / "train.tar", ("a.jpg", b""), (name, data))
    with pytest.raises(UsageError, match=rf"^{path}: {message}"):
        read_source(tmp_path)


def test_numbers_beside_texts_are_refused(tmp_path):
    tar(tmp_path / "t.tar", ("a.jpg", b""), ("a.json", b'{"label": 1}'), ("b.jpg", b""), ("b.cls", b"dog"))
    with pytest.raises(
        UsageError, match=r"some labels are numbers and others strings: 1 of a.jpg, but 'dog' of b.jpg"
    ):
        read_source(tmp_path)


def test_a_truncated_tar_is_named_with_the_offset(tree, tmp_path):
    root = as_webdataset(tree, tmp_path, per_tar=100)
    path = root / "imagenet-train-000000.tar"
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(UsageError, match=rf"^{path}: truncated at offset 5,000"):
        read_source(root)


@pytest.mark.parametrize("keep", [0, 3, 12, -9, -3])
def test_a_truncated_compressed_tar_is_named(tmp_path, keep):
    members = [(f"{k}.{e}", b"%d" % k) for k in range(9) for e in ("jpg", "cls")]
    path = tar(tmp_path / "train.tar.gz", *members)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError, match=rf"^{path}: (no complete gzip file|truncated)"):
        read_source(tmp_path)


def test_any_damage_to_a_compressed_tar_is_one_line_or_harmless(tmp_path):
    members = [(f"{k}.{e}", b"%d" % k) for k in range(9) for e in ("jpg", "cls")]
    path = tar(tmp_path / "train.tar.gz", *members)
    good, expected = path.read_bytes(), listed(tmp_path)
    outcomes = []
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        try:
            outcomes.append(listed(tmp_path) == expected)
        except UsageError as error:
            outcomes.append(str(error).partition(": ")[0])
    assert set(outcomes) == {True, str(path)}
    assert outcomes.count(str(path)) > len(good) // 2


def test_a_tar_under_a_compressed_name_is_named(tmp_path):
    plain = tar(tmp_path / "plain", ("a.jpg", b""), ("a.cls", b"0"))
    plain.rename(tmp_path / "train.tar.gz")
    with pytest.raises(UsageError, match=r"train.tar.gz: no complete gzip file \(Not a gzipped file"):
        read_source(tmp_path)


def test_a_page_of_an_expired_link_is_no_tar(tmp_path):
    place(tmp_path / "train.tar", b"<html>" * 1000)
    with pytest.raises(UsageError, match=r"train.tar: damaged at offset 0"):
        read_source(tmp_path)


def test_offsets_in_compressed_tars_are_of_the_tar_itself(tree, tmp_path):
    root = as_webdataset(tree, tmp_path, suffix=".tar.gz", per_tar=100)
    source = read_source(root)
    inside = gzip.decompress((root / "imagenet-val-000000.tar.gz").read_bytes())
    number = [c.path for c in source.containers].index("imagenet-val-000000.tar.gz")
    originals = {path.stem: path.read_bytes() for _, path in images(tree, "val")}
    assert classes_of(tree) == [c.id for c in source.classes]
    for sample in source.splits["val"]:
        assert sample.container == number
        assert inside[sample.offset : sample.offset + sample.size] == originals[sample.key]
