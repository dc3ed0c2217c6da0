import json
import shutil

import pytest
from helpers.folders import place, refused
from helpers.hub_files import write_tar
from helpers.imagenet_files import tar_bytes
from hypothesis import given, settings, strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from pipeline.dataset.tar import Member
from pipeline.errors import UsageError
from pipeline.sharding.reader import read_samples
from pipeline.sources.base import SourceOptions
from pipeline.sources.detection import read_source
from pipeline.sources.listers.webdataset import part_of
from pipeline.storage.open import open_store


def tar(path, *members):
    """Write a tar of (name, bytes) members, in this order."""
    return place(path, tar_bytes(members, "w:gz" if path.suffix in (".gz", ".tgz") else "w"))


def pairs(**labels):
    """KEY.jpg with the key as its bytes and KEY.cls, for KEY=label."""
    return [
        (f"{key}.{suffix}", data.encode())
        for key, label in labels.items()
        for suffix, data in (("jpg", key), ("cls", label))
    ]


def files(text):
    """Members NAME or NAME=TEXT, which spaces separate."""
    words = (word.partition("=") for word in text.split())
    return [(name, data.encode()) for name, _, data in words]


def by_library(path):
    """Return the samples that the webdataset library reads from a tar."""
    with path.open("rb") as file:
        members = [member | {"__url__": str(path)} for member in tar_file_iterator(file)]
    return list(group_by_keys(members))


def listed(root):
    """(path, class) of the training images."""
    source = read_source(root, SourceOptions(layout="webdataset"))
    return [(s.path, source.classes[s.label].id) for s in source.splits["train"]]


def read(source, split, scratch):
    """(sample, bytes) of a split's images."""
    samples = source.splits[split]
    store = open_store(source.root)
    return list(zip(samples, read_samples(store, source.containers, scratch, samples), strict=True))


# Tars and splits


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
        assert {s.key: (data, s.label) for s, data in read(source, split, tmp_path)} == expected


def test_another_manifest_is_no_manifest_of_ours(tmp_path):
    tar(tmp_path / "train.tar", *pairs(a="0", b="1"))
    place(tmp_path / "manifest.json", b'{"classes": 2}')
    assert listed(tmp_path) == [("a.jpg", "0"), ("b.jpg", "1")]
    place(tmp_path / "manifest.json", b'{"classes": ')
    refused(lambda: read_source(tmp_path), "manifest.json: damaged")


def test_splits_are_in_the_names(tmp_path):
    for name, key in (("a/b/0.TAR", "t"), ("a/val.tgz", "v")):
        tar(tmp_path / name, *pairs(**{f"{key}0": "0", f"{key}1": "1"}))
    place(tmp_path / "README.md")
    source = read_source(tmp_path)
    assert source.layout == "webdataset"
    assert [s.path for s in source.splits["train"]] == ["t0.jpg", "t1.jpg"]
    assert [s.path for s in source.splits["val"]] == ["v0.jpg", "v1.jpg"]


# Samples


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (
            [
                *files("./x/a.jpg ./x/a.txt"),
                ("./x/a.cls", b"cat\n"),
                ("y/a.cls", b" dog"),
                *files("y/a.JPEG y.z/b.Png y.z/b.CLS=cat README.txt __meta__/c.jpg ._d.jpg x/._d.cls"),
            ],
            [("x/a.jpg", "cat"), ("y.z/b.Png", "cat"), ("y/a.JPEG", "dog")],
        ),
        (  # .cls comes before .json
            [("a.json", b'{"label": "wrong"}'), *pairs(a="x", b="y")],
            [("a.jpg", "x"), ("b.jpg", "y")],
        ),
        (  # images that go with another
            files("a.jpg a.mask.png a.png a.cls=x b.image.jpg b.cls=y c.cls=y c.thumb.jpg c.jpg"),
            [("a.jpg", "x"), ("b.image.jpg", "y"), ("c.jpg", "y")],
        ),
        (  # digits are numbers where all labels are
            [*pairs(a="0010", b="9", c="0009"), ("d.jpg", b""), ("d.json", b'{"label": 10}')],
            [("a.jpg", "10"), ("b.jpg", "09"), ("c.jpg", "09"), ("d.jpg", "10")],
        ),
        (pairs(a="007", b="bond"), [("a.jpg", "007"), ("b.jpg", "bond")]),
        (pairs(a="7.0", b="10."), [("a.jpg", "07"), ("b.jpg", "10")]),
        (
            files("a.jpg b.jpg c.jpg a.cls=x c.cls=y b.cls=x"),
            [("a.jpg", "x"), ("b.jpg", "x"), ("c.jpg", "y")],
        ),
    ],
)
def test_members_are_grouped_by_key(tmp_path, members, expected):
    tar(tmp_path / "train.tar", *members)
    assert listed(tmp_path) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"label": 3, "cls": 4}, "3"),
        ({"label": None, "cls": 4, "class": 5}, "4"),
        ({"class": 5, "class_id": 6}, "5"),
        ({"class_id": 6, "target": 7}, "6"),
        ({"target": "7", "text": "8"}, "7"),
        ({"label": 0, "filename": "a.jpg"}, "0"),
        ({"label": 7.0}, "7"),
    ],
)
def test_labels_in_json(tmp_path, fields, expected):
    members = [("a.jpg", b"a"), ("a.json", json.dumps(fields).encode())]
    tar(tmp_path / "t.tar", *members, ("b.jpg", b"b"), ("b.json", b'{"label": 9}'))
    assert listed(tmp_path) == [("a.jpg", expected), ("b.jpg", "9")]


def test_equal_keys_in_one_tar_stay_two_images(tmp_path):
    members = [("a.jpg", b"1"), ("a.cls", b"x"), ("a.jpg", b"2"), ("a.cls", b"y")]
    tar(tmp_path / "train.tar", *members)
    found = read(read_source(tmp_path), "train", tmp_path)
    assert [(s.key, s.label, data) for s, data in found] == [("x-a", 0, b"1"), ("y-a", 1, b"2")]


def test_names_with_dots(tmp_path):
    tar(tmp_path / "t.tar", *pairs(**{f"im.v1.{k}": k for k in "123"}))
    found = read(read_source(tmp_path), "train", tmp_path)
    assert [(s.key, s.label) for s, _ in found] == [(f"im%2Ev1%2E{k + 1}", k) for k in range(3)]
    assert [data for _, data in found] == [b"im.v1.1", b"im.v1.2", b"im.v1.3"]


KEYS = st.lists(
    st.from_regex(r"([a-z]{1,2}/){0,2}[a-z0-9_-]{1,4}", fullmatch=True), min_size=2, max_size=12, unique=True
)


@settings(max_examples=12)
@given(KEYS, st.data())
def test_samples_are_those_of_the_webdataset_library(tmp_path_factory, keys, data):
    folder = tmp_path_factory.mktemp("tars")
    samples = []
    for number, key in enumerate(keys):
        suffix = data.draw(st.sampled_from(["jpg", "jpeg", "png", "JPG", "webp"]))
        extra = data.draw(
            st.dictionaries(st.sampled_from(["txt", "npy", "a.b", "seg.bin"]), st.binary(max_size=9))
        )
        label = str(0 if number == 0 else data.draw(st.integers(0, 3))).encode()
        content = data.draw(st.binary(max_size=600))
        samples.append({"__key__": key, suffix: content, "cls": b"4" if number == 1 else label, **extra})
    write_tar(folder / "train-0.tar", samples)
    expected = {}
    for sample in by_library(folder / "train-0.tar"):
        content = next(v for k, v in sample.items() if k in ("jpg", "jpeg", "png", "webp"))
        expected[sample["__key__"]] = (content, int(sample["cls"]))
    source = read_source(folder)
    found = {
        s.path.rpartition(".")[0]: (content, int(source.classes[s.label].id))
        for s, content in read(source, "train", folder)
    }
    assert found == expected
    shutil.rmtree(folder)


@settings(max_examples=200)
@given(
    st.from_regex(r"([a-zA-Z._]{1,6}/){0,2}[a-zA-Z_][a-zA-Z0-9._-]{0,8}\.(jpg|PNG|cls|Json)", fullmatch=True)
)
def test_keys_and_extensions_are_those_of_the_webdataset_library(name):
    part = part_of(Member(name, 0, 0))
    if part is None:  # hidden files and the library's own
        assert any(word.startswith((".", "__")) for word in name.split("/"))
    else:
        key, extension = base_plus_ext(name)
        assert (part.key, name[len(part.key) + 1 :]) == (key, extension)
        assert part.prefix == extension.rpartition(".")[0]


# Bad input


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b""), *pairs(b="0"), ("c.jpg", b"")], "a.jpg has no label; 2 of 3 train images"),
        (
            [*pairs(a="0"), ("b.cls", b"1"), ("c.cls", b"1"), ("d.json", b'{"label": 1}')],
            "b has a label and no image, and 2 more labels have none; add images",
        ),
        ([("a.jpg", b""), ("a.cls", b"\xff\xfe")], "a.cls is no label"),
        ([("a.jpg", b""), ("a.json", b'{"label": ')], "a.json is no label"),
        ([("a.json", b'{"label": 1.5}')], "a.json has the label 1.5; it must be a whole number or a string"),
        ([("a.json", b'{"label": true}')], "a.json has the label True; it must be"),
        (pairs(a="7.5", b="1"), "a.jpg has the label 7.5; labels must be whole numbers"),
        ([("a.cls", bytes(2**24 + 1))], "a.cls has 16,777,217 bytes, too many for a label"),
    ],
)
def test_bad_labels_are_named(tmp_path, members, message):
    path = tar(tmp_path / "train.tar", *members)
    refused(lambda: read_source(tmp_path), f"{path}: {message}")


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("train.tar", 1600, "truncated at offset 1,600"),
        ("train.tar.gz", 0, "truncated"),
        *(("train.tar.gz", keep, "no complete compressed tar") for keep in (3, 12, -9, -3)),
    ],
)
def test_a_truncated_tar_is_named(tmp_path, name, keep, message):
    path = tar(tmp_path / name, *pairs(a="0", b="1", c="2"))
    path.write_bytes(path.read_bytes()[:keep])
    refused(lambda: read_source(tmp_path), f"{path}: {message}")


def test_any_damage_to_a_compressed_tar_is_one_line_or_harmless(tmp_path):
    path = tar(tmp_path / "train.tar.gz", *pairs(a="0", b="1", c="2"))
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


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train.tar.gz", tar_bytes(pairs(a="0")), "no complete compressed tar (Not a gzipped file"),
        ("train.tar", b"<html>" * 1000, "damaged at offset 0"),
    ],
)
def test_what_is_no_such_tar_is_named(tmp_path, name, data, message):
    path = place(tmp_path / name, data)
    refused(lambda: read_source(tmp_path), f"{path}: {message}")
