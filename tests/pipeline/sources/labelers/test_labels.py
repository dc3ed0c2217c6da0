import pytest
from helpers.folders import refused
from hypothesis import given, settings, strategies as st

from pipeline.dataset.manifest import ClassInfo
from pipeline.sources.base import Image
from pipeline.sources.labelers.labels import to_classes


def found(*labels, wnids=None):
    """Images with labels, and the WNIDs of their file names."""
    names = [
        f"{k}_{wnid}.jpg" if wnid else f"{k}.jpg" for k, wnid in enumerate(wnids or [None] * len(labels))
    ]
    return [Image(name, -1, 0, k, label) for k, (name, label) in enumerate(zip(names, labels, strict=True))]


def ids(splits, **options):
    return tuple(info.id for info in to_classes("here", splits, **options))


def test_classes_are_those_that_occur_in_any_split():
    splits = {"train": found(3, 1), "val": found(2), "test": found(1)}
    assert ids(splits, names=list("abcd")) == ("b", "c", "d")
    assert {split: [image.label for image in images] for split, images in splits.items()} == {
        "train": ["d", "b"],
        "val": ["c"],
        "test": ["b"],
    }


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
def test_classes_of_labels(labels, wnids, names, classes):
    assert ids({"train": found(*labels, wnids=wnids)}, names=names) == classes


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": found(0, 1), "val": found("ant")},
            "some labels are numbers and others strings: 0 of 0.jpg, but 'ant' of 0.jpg; use one kind",
        ),
        (
            {"train": found(0, 1, 1, wnids=[A, B, C])},
            f"1_{B}.jpg has label 1 and WNID {B}, 2_{C}.jpg label 1 and WNID {C};",
        ),
        (
            {"train": found(0, 1, 2, wnids=[A, B, B])},
            f"1_{B}.jpg has label 1 and WNID {B}, 2_{B}.jpg label 2 and WNID {B};",
        ),
    ],
)
def test_contradictory_labels(splits, message):
    refused(lambda: ids(splits), message)


@pytest.mark.parametrize("options", [{"names": ["a", "b"]}, {"classes": [ClassInfo("a", "a")] * 2}])
def test_a_number_beyond_the_names(options):
    message = "label 2 occurs, but only the labels 0 to 1 have names"
    refused(lambda: ids({"train": found(0, 1, 2)}, **options), message)


def test_classes_of_ours_are_used_as_they_are():
    images = found(0, 1, wnids=["n00000009"] * 2)
    classes = [ClassInfo("n00000002", "b"), ClassInfo("n00000001", "a")]
    assert to_classes("here", {"train": images}, classes=classes) == classes[::-1]  # by WNID
    assert [image.label for image in images] == ["n00000002", "n00000001"]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=30))
def test_digits_of_one_width_sort_as_the_numbers(labels):
    images = found(*labels)
    made = ids({"train": images})
    assert list(made) == sorted(made)
    assert [int(c) for c in made] == sorted(set(labels))
    assert [int(image.label) for image in images] == labels
