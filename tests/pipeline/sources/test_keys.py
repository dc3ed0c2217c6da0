import hashlib
import re

import pytest
from hypothesis import given, settings, strategies as st

from pipeline.sources.base import Image, is_image
from pipeline.sources.keys import stem_of, unique_keys
from pipeline.sources.labelers.wnids import wnid_in

KEY = re.compile(r"[A-Za-z0-9_+=@~%-]{1,90}")


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
    val = [path for path in files if path.startswith("val/")]
    train = [path for path in files if path not in val]
    splits = [[Image(path, 1, label=path.split("/")[-2]) for path in paths] for paths in (train, val)]
    return dict(zip(train + val, unique_keys(splits)[0], strict=True))


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
        {  # the hub's names, whose end repeats the class; another WNID stays
            "n01440764/n01440764_1_n01440764.JPEG": "n01440764_1",
            "n01440764/2_n01443537.JPEG": "2_n01443537",
        },
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
    found = [
        unique_keys(
            [
                [Image(place(s, n, f), 1, label=n) for s, n, f in images if s == split]
                for split in ("train", "val")
            ]
        )[0]
        for place in layouts
    ]
    assert found == [["ant-1", "bee-1", "ant-1-2"]] * 3


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


@pytest.mark.parametrize(
    ("name", "wnid"),
    [
        ("n01440764_10026_n01440764.JPEG", "n01440764"),
        ("ILSVRC2012_val_00000293_n01440764.JPEG", "n01440764"),
        ("n01440764_10026.JPEG", "n01440764"),
        ("n01440764_1_n01443537.JPEG", "n01443537"),
        ("a_n01440764", "n01440764"),
        ("a_n01440764.b.JPEG", None),
        ("n01440764.JPEG", None),
        ("n014407641_1.JPEG", None),
    ],
)
def test_wnids_in_names(name, wnid):
    assert wnid_in(name) == wnid
