import hashlib
import os
import re
from collections import Counter

import pytest
from folders import is_root, place
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sources import ClassInfo, _unique_keys, rank, read_class_folders

KEY = re.compile(r"[A-Za-z0-9_+=@~%-]{1,90}")


def flat(root, **counts):
    """`root/CLASS/N.jpg` for CLASS=count."""
    for name, count in counts.items():
        for number in range(count):
            place(root / name / f"{name}_{number:02d}.jpg")
    return root


def paths(source, split):
    return [sample.path for sample in source.splits[split]]


def keys(source):
    return {sample.path: sample.key for samples in source.splits.values() for sample in samples}


# Layouts


def test_flat_class_folders_are_training_data(tmp_path):
    source = read_class_folders(flat(tmp_path, bee=2, ant=3))
    assert source.root == tmp_path
    assert source.layout == "class-folders"
    assert source.classes == (ClassInfo("ant", "ant"), ClassInfo("bee", "bee"))
    assert list(source.splits) == ["train"]
    assert [(s.path, s.label, s.key) for s in source.splits["train"]] == [
        ("ant/ant_00.jpg", 0, "ant_00"),
        ("ant/ant_01.jpg", 0, "ant_01"),
        ("ant/ant_02.jpg", 0, "ant_02"),
        ("bee/bee_00.jpg", 1, "bee_00"),
        ("bee/bee_01.jpg", 1, "bee_01"),
    ]
    assert source.notes == []


@pytest.mark.parametrize("folder", ["val", "validation"])
def test_split_folders(tmp_path, folder):
    for split, count in (("train", 3), (folder, 2), ("test", 1)):
        flat(tmp_path / split, ant=count, bee=count)
    place(tmp_path / "README.txt")
    source = read_class_folders(tmp_path)
    assert {split: len(samples) for split, samples in source.splits.items()} == {
        "train": 6,
        "val": 4,
        "test": 2,
    }
    assert paths(source, "val")[0] == f"{folder}/ant/ant_00.jpg"
    assert paths(source, "test") == ["test/ant/ant_00.jpg", "test/bee/bee_00.jpg"]
    assert [sample.label for sample in source.splits["val"]] == [0, 0, 1, 1]


def test_a_class_may_be_missing_from_validation(tmp_path):
    flat(tmp_path / "train", ant=2, bee=2, cat=2)
    flat(tmp_path / "val", cat=1)
    assert [sample.label for sample in read_class_folders(tmp_path).splits["val"]] == [2]


def test_labels_are_places_in_the_sorted_names(tmp_path):
    names = ["n10", "n9", "N9", "_x", "état", "a b"]
    flat(tmp_path, **dict.fromkeys(names, 1))
    source = read_class_folders(tmp_path)
    assert [c.id for c in source.classes] == sorted(names)
    assert {s.path.split("/")[0]: s.label for s in source.splits["train"]} == {
        name: label for label, name in enumerate(sorted(names))
    }


def test_pictures_are_found_at_any_depth_and_in_every_format(tmp_path):
    flat(tmp_path, bee=1)
    suffixes = ["jpg", "JPG", "Jpeg", "JPEG", "jpe", "png", "gif", "webp", "bmp", "tif", "TIFF", "ppm", "pgm"]
    for number, suffix in enumerate(suffixes):
        place(tmp_path / "ant" / ("deep/" * (number % 3)) / f"{number:02d}.{suffix}")
    source = read_class_folders(tmp_path)
    assert len(source.splits["train"]) == len(suffixes) + 1
    assert "ant/deep/deep/02.Jpeg" in paths(source, "train")
    assert {s.label for s in source.splits["train"] if s.path.startswith("ant/")} == {0}


def test_a_folder_named_like_a_picture_is_a_folder(tmp_path):
    flat(tmp_path, bee=1)
    place(tmp_path / "ant" / "album.jpg" / "1.jpg")
    assert paths(read_class_folders(tmp_path), "train") == ["ant/album.jpg/1.jpg", "bee/bee_00.jpg"]


def test_hidden_files_do_not_exist_and_others_are_noted(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    for name in (".DS_Store", "ant/.1.jpg", "ant/.thumbs/2.jpg", ".git/a/1.jpg"):
        place(tmp_path / name)
    source = read_class_folders(tmp_path)
    assert len(source.splits["train"]) == 2
    assert source.notes == []
    place(tmp_path / "labels.csv")
    assert read_class_folders(tmp_path).notes == [
        f"{tmp_path}: 1 file is no picture in a class folder, left out"
    ]
    place(tmp_path / "ant" / "Thumbs.db")
    place(tmp_path / "loose.jpg")
    assert read_class_folders(tmp_path).notes == [
        f"{tmp_path}: 3 files are no picture in a class folder, left out"
    ]


def test_an_empty_validation_folder_is_noted_and_left_out(tmp_path):
    flat(tmp_path / "train", ant=2, bee=2)
    (tmp_path / "val" / "ant").mkdir(parents=True)
    source = read_class_folders(tmp_path)
    assert list(source.splits) == ["train"]
    assert source.notes == ["val: no class folders with pictures, left out"]
    assert list(read_class_folders(tmp_path, 0.5).splits) == ["train", "val"]


def test_linked_class_folders_are_followed(tmp_path):
    flat(tmp_path / "elsewhere", ant=2)
    flat(tmp_path / "source", bee=1)
    (tmp_path / "source" / "ant").symlink_to(tmp_path / "elsewhere" / "ant")
    assert len(read_class_folders(tmp_path / "source").splits["train"]) == 3


# A validation fraction


def test_val_fraction_takes_the_same_share_of_each_class(tmp_path):
    flat(tmp_path, ant=40, bee=20, cat=3)
    whole, source = read_class_folders(tmp_path), read_class_folders(tmp_path, 0.25, seed=7)
    labels = {split: Counter(s.label for s in samples) for split, samples in source.splits.items()}
    assert labels == {"train": {0: 30, 1: 15, 2: 2}, "val": {0: 10, 1: 5, 2: 1}}
    joined = sorted(paths(source, "train") + paths(source, "val"))
    assert joined == paths(whole, "train")
    assert keys(source) == keys(whole)


def test_val_fraction_depends_on_the_seed_and_nothing_else(tmp_path):
    flat(tmp_path, ant=40, bee=40)
    first = paths(read_class_folders(tmp_path, 0.25, seed=1), "val")
    assert paths(read_class_folders(tmp_path, 0.25, seed=1), "val") == first
    assert paths(read_class_folders(tmp_path, 0.25, seed=2), "val") != first
    smaller = set(paths(read_class_folders(tmp_path, 0.1, seed=1), "val"))
    assert smaller < set(first)


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.999])
def test_val_fraction_leaves_each_class_a_training_picture(tmp_path, fraction):
    flat(tmp_path, ant=1, bee=2, cat=9)
    source = read_class_folders(tmp_path, fraction)
    assert {s.label for s in source.splits["train"]} == {0, 1, 2}
    assert 0 not in {s.label for s in source.splits["val"]}


def test_classes_too_small_for_the_fraction_are_noted(tmp_path):
    source = read_class_folders(flat(tmp_path / "s", ant=20, bee=3), val_fraction=0.1)
    assert {sample.label for sample in source.splits["val"]} == {0}
    assert source.notes == ["val: 1 of 2 classes are too small for --val-fraction 0.1"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = flat(tmp_path / "s", ant=2, bee=2)
    flat(tmp_path / "elsewhere", more=3)
    (root / "ant" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "bee" / "loop").symlink_to(root / "bee")
    source = read_class_folders(root)
    labels = [sample.label for sample in source.splits["train"]]
    assert (labels.count(0), labels.count(1)) == (5, 2)


def test_val_fraction_keeps_a_test_split(tmp_path):
    flat(tmp_path / "train", ant=10, bee=10)
    flat(tmp_path / "test", ant=1, bee=1)
    source = read_class_folders(tmp_path, 0.2)
    assert {k: len(v) for k, v in source.splits.items()} == {"train": 16, "val": 4, "test": 2}


# Bad input


def bad(tmp_path, message, **options):
    with pytest.raises(UsageError) as refused:
        read_class_folders(tmp_path, **options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_source(tmp_path):
    bad(tmp_path / "nowhere", f"source {tmp_path}/nowhere: it does not exist")


def test_a_file_as_source(tmp_path):
    bad(place(tmp_path / "train.tar"), f"source {tmp_path}/train.tar: it is a file")


@pytest.mark.parametrize(
    "files", [[], ["notes.txt"], ["1.jpg", "2.jpg"], ["a/x.txt", "b/y.txt"], ["train/1.jpg"]]
)
def test_no_pictures_in_class_folders(tmp_path, files):
    for name in files:
        place(tmp_path / name)
    bad(tmp_path, f"source {tmp_path}: no pictures found")


def test_one_class(tmp_path):
    bad(flat(tmp_path, ant=5), "found one class (ant)")


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_a_class_without_training_pictures(tmp_path, fraction):
    flat(tmp_path, bee=2, cat=2)
    (tmp_path / "ant").mkdir()
    bad(tmp_path, "no training pictures for ant;", val_fraction=fraction)


def test_classes_that_are_in_validation_only(tmp_path):
    flat(tmp_path / "train", ant=1, bee=1)
    flat(tmp_path / "val", **{f"c{k}": 1 for k in range(7)})
    bad(tmp_path, "no training pictures for c0, c1, c2, c3, c4 and 2 more;")


def test_val_and_validation(tmp_path):
    for split in ("train", "val", "validation"):
        flat(tmp_path / split, ant=1, bee=1)
    bad(tmp_path, "found both val and validation")


@pytest.mark.parametrize("split", ["val", "validation", "test"])
def test_validation_without_training(tmp_path, split):
    flat(tmp_path / split, ant=1, bee=1)
    bad(tmp_path, f"found the folders {split} but no train")


@pytest.mark.parametrize("folder", ["val", "validation"])
def test_val_fraction_beside_a_validation_folder(tmp_path, folder):
    for split in ("train", folder):
        flat(tmp_path / split, ant=2, bee=2)
    bad(tmp_path, "--val-fraction 0.1 was asked for", val_fraction=0.1)


def test_val_fraction_that_rounds_to_nothing(tmp_path):
    bad(flat(tmp_path, ant=3, bee=3), "--val-fraction 0.1 of these 6 pictures", val_fraction=0.1)


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, 1.5, float("nan")])
def test_val_fraction_outside_its_range(tmp_path, fraction):
    bad(flat(tmp_path, ant=9, bee=9), f"--val-fraction {fraction:g} is not between", val_fraction=fraction)


@pytest.mark.skipif(is_root(), reason="root may read anything")
@pytest.mark.parametrize("folder", [".", "ant", "ant/deep"])
def test_unreadable_folders(tmp_path, folder):
    flat(tmp_path, ant=1, bee=1)
    place(tmp_path / "ant" / "deep" / "1.jpg")
    (tmp_path / folder).chmod(0)
    try:
        bad(tmp_path, "check its permissions")
    finally:
        (tmp_path / folder).chmod(0o755)


@pytest.mark.parametrize("name", [b"ant/caf\xe9.jpg", b"caf\xe9/1.jpg"])
def test_names_that_are_not_utf8(tmp_path, name):
    flat(tmp_path, ant=1, bee=1)
    try:
        place(tmp_path / os.fsdecode(name))
    except OSError:
        pytest.skip("this file system holds UTF-8 names only")
    bad(tmp_path, "is not UTF-8; rename it")


def test_a_link_to_nowhere_is_named_when_sizes_are_read(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    (tmp_path / "ant" / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"cannot read .*/ant/gone\.jpg: No such file"):
        read_class_folders(tmp_path).fingerprint()


# Keys


@pytest.mark.parametrize(
    ("stem", "key"),
    [
        ("n01440764_10043", "n01440764_10043"),
        ("a.b.c", "a%2Eb%2Ec"),
        ("two words", "two%20words"),
        ("tab\tnew\nline", "tab%09new%0Aline"),
        ("é", "%C3%A9"),
        ("100%", "100%25"),
        ("a+b=c@d~e-f", "a+b=c@d~e-f"),
        ("..", "%2E%2E"),
        (r"back\slash", "back%5Cslash"),
    ],
)
def test_a_key_is_the_stem_with_unsafe_bytes_escaped(stem, key):
    assert _unique_keys([f"ant/{stem}.jpg"]) == {f"ant/{stem}.jpg": key}


def test_long_stems_are_cut_and_told_apart_by_a_digest():
    stems = ["x" * 300, "x" * 299 + "y", "é" * 100]
    found = _unique_keys([f"ant/{stem}.jpg" for stem in stems])
    digests = [hashlib.sha256(stem.encode()).hexdigest()[:16] for stem in stems]
    assert list(found.values()) == [
        "x" * 60 + "~" + digests[0],
        "x" * 60 + "~" + digests[1],
        "%C3%A9" * 10 + "~" + digests[2],
    ]
    assert _unique_keys([f"ant/{'x' * 80}.jpg"]) == {f"ant/{'x' * 80}.jpg": "x" * 80}


def test_colliding_stems_get_their_folder_in_front():
    found = _unique_keys(["train/ant/1.jpg", "train/bee/1.jpg", "train/bee/2.jpg", "val/ant/1.jpg"])
    assert found == {
        "train/ant/1.jpg": "ant-1",
        "train/bee/1.jpg": "bee-1",
        "train/bee/2.jpg": "2",
        "val/ant/1.jpg": "ant-1-2",
    }


def test_two_formats_of_one_name_in_one_folder():
    assert _unique_keys(["ant/a.png", "ant/a.jpg"]) == {"ant/a.jpg": "ant-a", "ant/a.png": "ant-a-2"}


def test_a_prefixed_key_yields_to_a_file_of_that_name():
    found = _unique_keys(["ant/1.jpg", "bee/1.jpg", "cat/ant-1.jpg"])
    assert found == {"cat/ant-1.jpg": "ant-1", "ant/1.jpg": "ant-1-2", "bee/1.jpg": "bee-1"}


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
colliding = st.sampled_from(["a", "A", "1", "ant-1", "ant-1-2", "a.b", "a%2Eb", "x" * 90, "x" * 300])
stems = (names | colliding).filter(lambda name: not name.startswith("."))
listed = st.lists(
    st.tuples(st.sampled_from(["ant", "bee", "val/ant"]), stems, st.sampled_from([".jpg", ".png"])),
    unique=True,
    max_size=30,
).map(lambda files: [f"{folder}/{stem}{suffix}" for folder, stem, suffix in files])


@given(listed, st.randoms())
def test_keys_are_always_unique_safe_and_short(files, random):
    found = _unique_keys(files)
    assert found.keys() == set(files)
    assert len(set(found.values())) == len(files)
    for key in found.values():
        assert KEY.fullmatch(key)
    random.shuffle(files)
    assert _unique_keys(files) == found  # whatever the order of the listing


# Fingerprint and order


def test_the_fingerprint_changes_with_everything_that_is_listed(tmp_path):
    def fingerprint():
        return read_class_folders(tmp_path).fingerprint()

    flat(tmp_path, ant=2, bee=2)
    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    (tmp_path / "ant" / "ant_00.jpg").write_bytes(b"other size")
    seen.append(fingerprint())
    (tmp_path / "ant" / "ant_00.jpg").rename(tmp_path / "ant" / "renamed.jpg")
    seen.append(fingerprint())
    (tmp_path / "ant" / "renamed.jpg").rename(tmp_path / "bee" / "renamed.jpg")
    seen.append(fingerprint())
    place(tmp_path / "bee" / "more.jpg")
    seen.append(fingerprint())
    assert len(set(seen)) == 5
    place(tmp_path / "note.txt")
    assert fingerprint() == seen[-1]


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path):
    copies = [read_class_folders(flat(tmp_path / name, ant=2, bee=2)) for name in ("one", "two")]
    assert copies[0].fingerprint() == copies[1].fingerprint()


def test_rank_is_a_frozen_hash():
    assert rank(3, "train", "n01_2") == hashlib.blake2b(b"3/train/n01_2", digest_size=16).digest()
