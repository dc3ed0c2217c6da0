import pytest
from helpers.folders import place, refused
from hypothesis import given, settings, strategies as st

from pipeline.dataset.manifest import ClassInfo
from pipeline.sources.base import Container, build_source
from pipeline.sources.labelers.labels import Found, plain_name, to_listing, wnid_in
from pipeline.storage.open import open_store


def found(*labels, wnids=None):
    wnids = wnids or [None] * len(labels)
    return [Found(f"{k}.jpg", *pair, -1, 0, k) for k, pair in enumerate(zip(labels, wnids, strict=True))]


def listing(root, splits, **options):
    return to_listing(open_store(root), "any", splits, (Container("a.tar", 1),), **options)


@pytest.mark.parametrize(
    ("name", "plain", "wnid", "in_val"),
    [
        ("n01440764_10026_n01440764.JPEG", "n01440764_10026.JPEG", "n01440764", "n01440764"),
        ("n01440764_10026.JPEG", "n01440764_10026.JPEG", "n01440764", None),
        ("n01440764_1_n01443537.JPEG", "n01440764_1.JPEG", "n01443537", "n01443537"),
        ("a_n01440764", "a", "n01440764", "n01440764"),
        ("a_n01440764.b.JPEG", "a_n01440764.b.JPEG", None, None),
        ("a_n0144076.JPEG", "a_n0144076.JPEG", None, None),
        ("n01440764.JPEG", "n01440764.JPEG", None, None),
        ("n014407641_1.JPEG", "n014407641_1.JPEG", None, None),
    ],
)
def test_wnids_in_names(name, plain, wnid, in_val):
    assert plain_name(name) == plain
    assert wnid_in(name, "train") == wnid
    assert wnid_in(name, "val") == in_val


def test_classes_are_those_that_occur_in_any_split(tmp_path):
    made = listing(tmp_path, {"train": found(3, 1), "val": found(2), "test": found(1)}, names=list("abcd"))
    assert made.classes == ("b", "c", "d")
    assert {split: [e.class_id for e in entries] for split, entries in made.entries.items()} == {
        "train": ["d", "b"],
        "val": ["c"],
        "test": ["b"],
    }
    refused(lambda: build_source("x", made), "no training images for c")


A, B, C = "n00000001", "n00000002", "n00000003"


@pytest.mark.parametrize(
    ("labels", "wnids", "names", "classes"),
    [
        ([10, 2, 2, 100], None, None, ("002", "010", "100")),
        ([1, 0, 3], None, ["zebra", "ant", "unused", "bee"], ("zebra", "ant", "bee")),
        ([0, 1, 2], None, ["crane", "ant", "crane"], ("crane 0", "ant", "crane 2")),
        ([0, 1], None, [B, A], (A, B)),
        (["zebra", "ant", "10", "9"], None, None, ("10", "9", "ant", "zebra")),
        ([0, 0, 1], [B, None, A], None, (A, B)),
        ([0, 1, 2], [B, A, None], None, ("0", "1", "2")),  # not every label has a WNID
        (["cat", "dog", "dog"], [A, B, C], None, ("cat", "dog")),
    ],
)
def test_classes_of_labels(tmp_path, labels, wnids, names, classes):
    assert listing(tmp_path, {"train": found(*labels, wnids=wnids)}, names=names).classes == classes


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": found(0, None, 1, None)}, "a.tar: 1.jpg has no label; 2 of 4 train images have none"),
        ({"train": found(0, 1, -1)}, "a.tar: 2.jpg has no label; 1 of 3 train images"),
        ({"train": found("ant", "", "bee")}, "a.tar: 1.jpg has no label; 1 of 3 train images"),
        ({"train": found(0, 1), "val": found(0, None)}, "a.tar: 1.jpg has no label; 1 of 2 val images"),
        (
            {"train": found(0, 1), "val": found("ant")},
            "some labels are numbers and others strings: 0 of 0.jpg, but 'ant' of 0.jpg; use one kind",
        ),
        (
            {"train": found(0, 1, 1, wnids=[A, B, C])},
            f"1.jpg has label 1 and WNID {B}, 2.jpg label 1 and WNID {C};",
        ),
        (
            {"train": found(0, 1, 2, wnids=[A, B, B])},
            f"1.jpg has label 1 and WNID {B}, 2.jpg label 2 and WNID {B};",
        ),
    ],
)
def test_labels_that_are_missing_or_contradictory(tmp_path, splits, message):
    refused(lambda: listing(tmp_path, splits), message)


@pytest.mark.parametrize("options", [{"names": ["a", "b"]}, {"classes": [ClassInfo("a", "a")] * 2}])
def test_a_number_beyond_the_names(tmp_path, options):
    message = "label 2 occurs, but only the labels 0 to 1 have names"
    refused(lambda: listing(tmp_path, {"train": found(0, 1, 2)}, **options), message)


def test_classes_of_ours_are_used_as_they_are(tmp_path):
    place(tmp_path / "LOC_synset_mapping.txt", b"n00000001 another name\n")
    classes = [ClassInfo("n00000002", "b"), ClassInfo("n00000001", "a")]
    made = listing(tmp_path, {"train": found(0, 1, wnids=["n00000009"] * 2)}, classes=classes)
    assert made.names == {"n00000002": "b", "n00000001": "a"}
    assert [e.class_id for e in made.entries["train"]] == ["n00000002", "n00000001"]


@pytest.mark.parametrize(("labels", "names"), [((B, A, C), None), ((1, 0, 2), [A, B, C])])
def test_names_of_the_mapping_file_come_first(tmp_path, labels, names):
    place(tmp_path / "LOC_synset_mapping.txt", b"n00000001 tench\nn00000002 goldfish\n")
    made = listing(tmp_path, {"train": found(*labels)}, names=names)
    assert made.names == {A: "tench", B: "goldfish", C: C}


def test_a_split_without_labels_is_left_out_and_noted(tmp_path):
    made = listing(tmp_path, {"train": found(0, 1), "val": found(-1, None)})
    assert list(made.entries) == ["train"]
    assert made.notes == ["val: its 2 images have no labels, left out"]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=30))
def test_digits_of_one_width_sort_as_the_numbers(labels):
    made = listing("/nowhere", {"train": found(*labels)})
    assert list(made.classes) == sorted(made.classes)
    assert [int(c) for c in made.classes] == sorted(set(labels))
    assert [int(e.class_id) for e in made.entries["train"]] == labels
