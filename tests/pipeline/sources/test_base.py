import hashlib
import re
from collections import Counter

import pytest
from helpers.folders import refused
from hypothesis import given, settings, strategies as st

from pipeline.dataset.manifest import ClassInfo
from pipeline.sources.base import (
    Container,
    Entry,
    Listing,
    Sample,
    build_source,
    is_image,
    shuffle_key,
    stem_of,
    unique_keys,
)

KEY = re.compile(r"[A-Za-z0-9_+=@~%-]{1,90}")


def entries(split="train", **counts):
    """Return `count` entries SPLIT/CLASS/CLASS_N.jpg for each keyword CLASS=count."""
    return [
        Entry(f"{split}/{name}/{name}_{number:02d}.jpg", name, 10 + number)
        for name, count in counts.items()
        for number in range(count)
    ]


def listing(train, **splits):
    return Listing("folders", {"train": train} | splits)


def paths(source, split):
    return [sample.path for sample in source.splits[split]]


def bad(found, *parts, **options):
    refused(lambda: build_source("/data", found, **options), *parts)


# Labels and samples


def test_labels_are_places_among_the_sorted_classes_and_samples_are_sorted_by_place():
    found = Listing(
        "archives",
        {
            "val": [Entry("v1.jpg", "bee", 7, 1, 512)],
            "train": [
                Entry("bee.tar/2.jpg", "bee", 5, 0, 9000),
                Entry("ant.tar/1.jpg", "ant", 6, 0, 512),
                Entry("ant.tar/0.jpg", "ant", 8, 0, 1536),
            ],
        },
        containers=(Container("train.tar", 10240), Container("val.tar", 4096)),
        names={"bee": "honey bee"},
        notes=["a note"],
    )
    source = build_source("/data", found)
    assert (source.root, source.layout, source.notes) == ("/data", "archives", ["a note"])
    assert source.classes == (ClassInfo("ant", "ant"), ClassInfo("bee", "honey bee"))
    assert source.containers == (Container("train.tar", 10240), Container("val.tar", 4096))
    assert source.splits == {
        "train": [
            Sample("ant.tar/0.jpg", 0, "0", 8, 0, 1536),
            Sample("ant.tar/1.jpg", 0, "1", 6, 0, 512),
            Sample("bee.tar/2.jpg", 1, "2", 5, 0, 9000),
        ],
        "val": [Sample("v1.jpg", 1, "v1", 7, 1, 512)],
    }


def test_a_source_may_fix_the_order_of_its_classes():
    found = Listing("parquet", {"train": entries(ant=1, bee=1, cat=1)}, classes=("cat", "ant", "bee"))
    source = build_source("/data", found)
    assert [c.id for c in source.classes] == ["cat", "ant", "bee"]
    assert {s.path.split("/")[1]: s.label for s in source.splits["train"]} == {"cat": 0, "ant": 1, "bee": 2}


def test_entries_are_removed_from_the_listing():
    found = listing(entries(ant=2, bee=2))
    build_source("/data", found)
    assert found.entries == {}


# A validation fraction


def test_val_fraction_takes_the_same_share_of_each_class():
    counts = {"ant": 40, "bee": 20, "cat": 3}
    whole = build_source("/data", listing(entries(**counts)))
    found = listing(entries(**counts), test=entries("test", ant=1))
    source = build_source("/data", found, val_fraction=0.25, seed=7)
    labels = {split: Counter(s.label for s in samples) for split, samples in source.splits.items()}
    assert labels == {"train": {0: 30, 1: 15, 2: 2}, "val": {0: 10, 1: 5, 2: 1}, "test": {0: 1}}
    assert sorted(paths(source, "train") + paths(source, "val")) == paths(whole, "train")


def test_val_fraction_depends_on_the_seed_and_nothing_else():
    def val(fraction, seed):
        found = build_source("/data", listing(entries(ant=40, bee=40)), val_fraction=fraction, seed=seed)
        return paths(found, "val")

    first = val(0.25, seed=1)
    assert val(0.25, seed=1) == first
    assert val(0.25, seed=2) != first
    assert set(val(0.1, seed=1)) < set(first)


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.999])
def test_val_fraction_leaves_each_class_a_training_image(fraction):
    source = build_source("/data", listing(entries(ant=1, bee=2, cat=9)), val_fraction=fraction)
    assert {s.label for s in source.splits["train"]} == {0, 1, 2}
    assert 0 not in {s.label for s in source.splits["val"]}


def test_classes_too_small_for_the_fraction_are_noted():
    source = build_source("/data", listing(entries(ant=20, bee=3)), val_fraction=0.1)
    assert {sample.label for sample in source.splits["val"]} == {0}
    assert source.notes == ["val: 1 of 2 classes are too small for --val-fraction 0.1"]


def test_val_fraction_beside_validation_images():
    found = listing(entries(ant=2, bee=2), val=entries("val", ant=2))
    bad(found, "--val-fraction 0.1 was asked for, but /data has its own", val_fraction=0.1)


def test_val_fraction_that_rounds_to_nothing():
    bad(listing(entries(ant=3, bee=3)), "--val-fraction 0.1 of these 6 images", val_fraction=0.1)


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, 1.5, float("nan")])
def test_val_fraction_outside_its_range(fraction):
    found = listing(entries(ant=9, bee=9))
    bad(found, f"--val-fraction {fraction:g} is not between", val_fraction=fraction)


# Bad listings


def test_no_images():
    bad(listing([]), "source /data: no images found")


def test_one_class():
    bad(listing(entries(ant=5)), "source /data: found one class (ant)")


def test_classes_that_are_in_validation_only():
    val = entries("val", **{f"c{k}": 1 for k in range(7)})
    bad(listing(entries(ant=1, bee=1), val=val), "no training images for c0, c1, c2, c3, c4 and 2 more;")


def test_a_class_without_any_images():
    found = Listing("folders", {"train": entries(bee=2, cat=2)}, classes=("ant", "bee", "cat"))
    bad(found, "no training images for ant;")


@pytest.mark.parametrize("field", ["path", "class_id", "classes"])
def test_names_that_are_not_utf8(field):
    found = listing(entries(ant=1, bee=1))
    if field == "classes":
        found.classes = ("ant", "bee", "caf\udce9")
    else:
        found.entries["train"].append(
            Entry(**{"path": "x", "class_id": "ant", "size": 1, field: "caf\udce9"})
        )
    bad(found, r"the name b'caf\xe9' is not UTF-8; rename it")


# Names


@pytest.mark.parametrize(
    ("path", "stem", "is_one"),
    [
        ("a/b.JPEG", "b", True),
        ("b.tar/c.d.png", "c.d", True),
        ("a.jpg/readme", "readme", False),
        ("a/.jpg", ".jpg", False),
        ("a/b.", "b.", False),
    ],
)
def test_stems_and_suffixes(path, stem, is_one):
    assert stem_of(path) == stem
    assert is_image(path) is is_one


# Keys


def keyed(files):
    """Return path → key for paths of the form [SPLIT/]CLASS/NAME."""
    found, _ = unique_keys((path.startswith("val/"), path, path.split("/")[-2]) for path in files)
    return dict(zip(files, found, strict=True))


@pytest.mark.parametrize(
    ("stem", "key"),
    [
        ("n01440764_10043", "n01440764_10043"),
        ("a.b.c", "a%2Eb%2Ec"),
        ("two words", "two%20words"),
        ("é", "%C3%A9"),
        ("100%", "100%25"),
        ("a+b=c@d~e-f", "a+b=c@d~e-f"),
    ],
)
def test_a_key_is_the_stem_with_unsafe_bytes_escaped(stem, key):
    assert keyed([f"ant/{stem}.jpg"]) == {f"ant/{stem}.jpg": key}


def test_long_stems_are_cut_and_distinguished_by_a_digest():
    stems = ["x" * 300, "x" * 299 + "y", "é" * 100]
    found = keyed([f"ant/{stem}.jpg" for stem in stems])
    digests = [hashlib.sha256(stem.encode()).hexdigest()[:16] for stem in stems]
    assert list(found.values()) == [
        "x" * 60 + "~" + digests[0],
        "x" * 60 + "~" + digests[1],
        "%C3%A9" * 10 + "~" + digests[2],
    ]
    assert keyed([f"ant/{'x' * 80}.jpg"]) == {f"ant/{'x' * 80}.jpg": "x" * 80}


@pytest.mark.parametrize(
    "expected",
    [
        {
            "train/ant/1.jpg": "ant-1",
            "train/bee/1.jpg": "bee-1",
            "train/bee/2.jpg": "2",
            "val/ant/1.jpg": "ant-1-2",
        },
        {"ant/a.png": "ant-a-2", "ant/a.jpg": "ant-a"},  # two formats of one name
        {"ant/1.jpg": "ant-1-2", "bee/1.jpg": "bee-1", "cat/ant-1.jpg": "ant-1"},  # a file of that name
    ],
)
def test_colliding_stems_get_their_class_in_front(expected):
    assert keyed(list(expected)) == expected


def test_colliding_names_are_numbered_alike_whatever_the_layout():
    images = [("train", "ant", "1.jpg"), ("train", "bee", "1.jpg"), ("val", "ant", "1.jpg")]
    layouts = [
        lambda split, name, file: f"{split}/{name}/{file}",
        lambda split, name, file: f"{name}.tar/{file}" if split == "train" else file,
        lambda split, name, file: f"{'z' if split == 'train' else 'a'}/{file}",
    ]
    found = [unique_keys((s == "val", place(s, n, f), n) for s, n, f in images)[0] for place in layouts]
    assert found == [["ant-1", "bee-1", "ant-1-2"]] * 3


def test_renamed_images_are_noted():
    source = build_source("/data", listing([Entry("1.jpg", "ant", 1), Entry("b/1.jpg", "bee", 1)]))
    assert [sample.key for sample in source.splits["train"]] == ["ant-1", "bee-1"]
    assert source.notes == ["2 images share a file name with another; their keys have the class in front"]


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
colliding = st.sampled_from(["a", "A", "1", "ant-1", "ant-1-2", "a.b", "a%2Eb", "x" * 90, "x" * 300])
stems = (names | colliding).filter(lambda name: not name.startswith("."))
listed = st.lists(
    st.tuples(st.sampled_from(["ant", "bee", "val/ant"]), stems, st.sampled_from([".jpg", ".png"])),
    unique=True,
    max_size=30,
).map(lambda files: [f"{folder}/{stem}{suffix}" for folder, stem, suffix in files])


@settings(max_examples=50)
@given(listed, st.randoms())
def test_keys_are_always_unique_safe_and_short(files, random):
    found = keyed(files)
    assert found.keys() == set(files)
    assert len(set(found.values())) == len(files)
    for key in found.values():
        assert KEY.fullmatch(key)
    random.shuffle(files)
    assert keyed(files) == found  # whatever the order of the listing


# Fingerprint and order


def test_the_fingerprint_changes_with_everything_that_is_listed():
    def fingerprint(*more, tar_size=100, **changes):
        fields = {"path": "1.jpg", "class_id": "ant", "size": 5, "container": 0} | changes
        found = listing([Entry(**fields), *entries(ant=1, bee=1), *more])
        found.containers = (Container("a.tar", tar_size), Container("b.tar", 100))
        return build_source("/data", found).fingerprint()

    found = [
        fingerprint(),
        fingerprint(path="2.jpg"),
        fingerprint(class_id="bee"),
        fingerprint(size=6),
        fingerprint(container=1),
        fingerprint(Entry("more.jpg", "ant", 5)),
        fingerprint(tar_size=101),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint() == found[0]


def test_the_fingerprint_does_not_depend_on_the_place_or_the_order():
    forwards = build_source("/one", listing(entries(ant=2, bee=2)))
    backwards = build_source("/two", listing(entries(ant=2, bee=2)[::-1]))
    assert forwards.fingerprint() == backwards.fingerprint()


def test_rank_is_a_frozen_hash():
    assert shuffle_key(3, "train", "n01_2") == hashlib.blake2b(b"3/train/n01_2", digest_size=16).digest()
