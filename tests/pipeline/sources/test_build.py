import hashlib
from collections import Counter

import pytest
from helpers.folders import refused

from pipeline.dataset.manifest import ClassInfo
from pipeline.sources.base import Container, Image, Listing, Sample, SourceOptions
from pipeline.sources.build import build_source
from pipeline.sources.subset import shuffle_key


def entries(split="train", **counts):
    """Return `count` entries SPLIT/CLASS/CLASS_N.jpg for each keyword CLASS=count."""
    return [
        Image(f"{split}/{name}/{name}_{number:02d}.jpg", 10 + number, label=name)
        for name, count in counts.items()
        for number in range(count)
    ]


def listing(train, **splits):
    return Listing("images", {"train": train} | splits)


def build(found, **options):
    return build_source("/data", found, SourceOptions(**options))


def paths(source, split):
    return [sample.path for sample in source.splits[split]]


def bad(found, *parts, **options):
    refused(lambda: build(found, **options), *parts)


# Labels and samples


def test_labels_are_places_among_the_sorted_classes_and_samples_are_sorted_by_place():
    found = Listing(
        "images",
        {
            "val": [Image("v1.jpg", 7, 1, 512, "bee")],
            "train": [
                Image("bee.tar/2.jpg", 5, 0, 9000, "bee"),
                Image("ant.tar/1.jpg", 6, 0, 512, "ant"),
                Image("ant.tar/0.jpg", 8, 0, 1536, "ant"),
            ],
        },
        containers=(Container("train.tar", 10240), Container("val.tar", 4096)),
        names={"bee": "honey bee"},
        notes=["a note"],
    )
    source = build(found)
    assert (source.root, source.layout, source.notes) == ("/data", "images", ["a note"])
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
    source = build(found)
    assert [c.id for c in source.classes] == ["cat", "ant", "bee"]
    assert {s.path.split("/")[1]: s.label for s in source.splits["train"]} == {"cat": 0, "ant": 1, "bee": 2}


def test_images_are_removed_from_the_listing():
    found = listing(entries(ant=2, bee=2))
    build(found)
    assert found.images == {}


# A validation fraction


def test_val_fraction_takes_the_same_share_of_each_class():
    counts = {"ant": 40, "bee": 20, "cat": 3}
    whole = build(listing(entries(**counts)))
    found = listing(entries(**counts), test=entries("test", ant=1))
    source = build(found, val_fraction=0.25, seed=7)
    labels = {split: Counter(s.label for s in samples) for split, samples in source.splits.items()}
    assert labels == {"train": {0: 30, 1: 15, 2: 2}, "val": {0: 10, 1: 5, 2: 1}, "test": {0: 1}}
    assert sorted(paths(source, "train") + paths(source, "val")) == paths(whole, "train")


def test_val_fraction_depends_on_the_seed_and_nothing_else():
    def val(fraction, seed):
        found = build(listing(entries(ant=40, bee=40)), val_fraction=fraction, seed=seed)
        return paths(found, "val")

    first = val(0.25, seed=1)
    assert val(0.25, seed=1) == first
    assert val(0.25, seed=2) != first
    assert set(val(0.1, seed=1)) < set(first)


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.999])
def test_val_fraction_leaves_each_class_a_training_image(fraction):
    source = build(listing(entries(ant=1, bee=2, cat=9)), val_fraction=fraction)
    assert {s.label for s in source.splits["train"]} == {0, 1, 2}
    assert 0 not in {s.label for s in source.splits["val"]}


def test_classes_too_small_for_the_fraction_are_noted():
    source = build(listing(entries(ant=20, bee=3)), val_fraction=0.1)
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
    bad(found, f"val_fraction is {fraction:g}, not ", val_fraction=fraction)


# Bad listings


def test_no_images():
    bad(listing([]), "source /data: no images found")


def test_one_class():
    bad(listing(entries(ant=5)), "source /data: found one class (ant)")


def test_classes_that_are_in_validation_only():
    val = entries("val", **{f"c{k}": 1 for k in range(7)})
    bad(
        listing(entries(ant=1, bee=1), val=val),
        "no training images for c0, c1, c2, c3, c4 and 2 more, but 7 in val (such as val/c0/c0_00.jpg)",
        "--classes",
    )


def test_a_class_without_any_images():
    found = Listing("images", {"train": entries(bee=2, cat=2)}, classes=("ant", "bee", "cat"))
    bad(found, "no training images for ant;")


@pytest.mark.parametrize("field", ["path", "label", "classes"])
def test_names_that_are_not_utf8(field):
    found = listing(entries(ant=1, bee=1))
    if field == "classes":
        found.classes = ("ant", "bee", "caf\udce9")
    else:
        found.images["train"].append(Image(**{"path": "x", "label": "ant", "size": 1, field: "caf\udce9"}))
    bad(found, r"the name b'caf\xe9' is not UTF-8; rename it")


def test_renamed_images_are_noted():
    source = build(listing([Image("1.jpg", 1, label="ant"), Image("b/1.jpg", 1, label="bee")]))
    assert [sample.key for sample in source.splits["train"]] == ["ant-1", "bee-1"]
    assert source.notes == ["2 images share a file name with another; their keys have the class in front"]


# Fingerprint and order


def test_the_fingerprint_changes_with_everything_that_is_listed():
    def fingerprint(*more, tar_size=100, **changes):
        fields = {"path": "1.jpg", "label": "ant", "size": 5, "container": 0} | changes
        found = listing([Image(**fields), *entries(ant=1, bee=1), *more])
        found.containers = (Container("a.tar", tar_size), Container("b.tar", 100))
        return build(found).fingerprint()

    found = [
        fingerprint(),
        fingerprint(path="2.jpg"),
        fingerprint(label="bee"),
        fingerprint(size=6),
        fingerprint(container=1),
        fingerprint(Image("more.jpg", 5, label="ant")),
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


# Parts of the data, and the order of classes


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"max_per_class": 3}, {"train": {0: 3, 1: 3, 2: 2}, "val": {0: 1}}),
        ({"fraction": 0.25}, {"train": {0: 10, 1: 2, 2: 1}, "val": {0: 1}}),
        ({"fraction": 0.5, "max_per_class": 4}, {"train": {0: 4, 1: 4, 2: 1}, "val": {0: 1}}),
    ],
)
def test_a_part_of_each_class(options, kept):
    def chosen(seed):
        found = listing(entries(ant=40, bee=8, cat=2), val=entries("val", ant=1))
        return build(found, seed=seed, **options)

    source = chosen(1)
    labels = {split: Counter(s.label for s in samples) for split, samples in source.splits.items()}
    assert labels == kept
    assert chosen(1).splits == source.splits
    assert chosen(2).splits != source.splits


def test_a_smaller_part_is_part_of_a_larger_one():
    parts = [
        set(paths(build(listing(entries(ant=40, bee=40)), fraction=share), "train")) for share in (0.1, 0.5)
    ]
    assert parts[0] < parts[1]


@pytest.mark.parametrize("options", [{"fraction": 0.0}, {"fraction": 1.5}, {"max_per_class": 0}])
def test_parts_out_of_range(options):
    bad(listing(entries(ant=2, bee=2)), next(iter(options)), **options)


@pytest.mark.parametrize(
    ("classes", "order"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["02", "1"], ["1", "02"]),
    ],
)
def test_classes_are_sorted_as_numbers_where_all_are(classes, order):
    found = build(listing(entries(**dict.fromkeys(classes, 1))))
    assert [c.id for c in found.classes] == order


@pytest.mark.parametrize(
    "wanted",
    [("cat", "ant"), ("house cat", "ant"), ("2", "0"), ("house cat, Felis", "ant")],
)
def test_chosen_classes_and_their_order(wanted):
    found = listing(entries(ant=1, bee=2, cat=1), val=entries("val", bee=1, cat=1))
    found.names = {"cat": "house cat, Felis"}
    source = build(found, classes=wanted)
    assert [c.id for c in source.classes] == ["cat", "ant"]
    assert {s.path.split("/")[1]: s.label for s in source.splits["train"]} == {"cat": 0, "ant": 1}
    assert len(source.splits["val"]) == 1
    assert sum(row.action == "left out" for row in source.left_out.rows()) == 3


@pytest.mark.parametrize(
    ("wanted", "message"),
    [(("ant", "bea"), "bea is none of the 3 classes"), (("ant", "ant"), "name the same class")],
)
def test_classes_that_cannot_be_chosen(wanted, message):
    bad(listing(entries(ant=1, bee=1, cat=1)), message, classes=wanted)
