import os

import pytest
from helpers.folders import is_root, place

from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError
from pipeline.sources.detection import read_source
from pipeline.storage.open import open_store


def flat(root, **counts):
    """`root/CLASS/N.jpg` for CLASS=count."""
    for name, count in counts.items():
        for number in range(count):
            place(root / name / f"{name}_{number:02d}.jpg")
    return root


def paths(source, split):
    return [sample.path for sample in source.splits[split]]


# Layouts


def test_flat_class_folders_are_training_data(tmp_path):
    source = read_source(flat(tmp_path, bee=2, ant=3))
    assert source.root == str(tmp_path)
    assert source.layout == "folders"
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
    source = read_source(tmp_path)
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
    assert [sample.label for sample in read_source(tmp_path).splits["val"]] == [2]


def test_labels_are_places_in_the_sorted_names(tmp_path):
    names = ["n10", "n9", "N9", "_x", "état", "a b"]
    flat(tmp_path, **dict.fromkeys(names, 1))
    source = read_source(tmp_path)
    assert [c.id for c in source.classes] == sorted(names)
    assert {s.path.split("/")[0]: s.label for s in source.splits["train"]} == {
        name: label for label, name in enumerate(sorted(names))
    }


def test_images_are_found_at_any_depth_and_in_every_format(tmp_path):
    flat(tmp_path, bee=1)
    suffixes = ["jpg", "JPG", "Jpeg", "JPEG", "jpe", "png", "gif", "webp", "bmp", "tif", "TIFF", "ppm", "pgm"]
    for number, suffix in enumerate(suffixes):
        place(tmp_path / "ant" / ("deep/" * (number % 3)) / f"{number:02d}.{suffix}")
    source = read_source(tmp_path)
    assert len(source.splits["train"]) == len(suffixes) + 1
    assert "ant/deep/deep/02.Jpeg" in paths(source, "train")
    assert {s.label for s in source.splits["train"] if s.path.startswith("ant/")} == {0}


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    flat(tmp_path, bee=1)
    place(tmp_path / "ant" / "album.jpg" / "1.jpg")
    assert paths(read_source(tmp_path), "train") == ["ant/album.jpg/1.jpg", "bee/bee_00.jpg"]


def test_hidden_files_do_not_exist_and_others_are_noted(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    for name in (".DS_Store", "ant/.1.jpg", "ant/.thumbs/2.jpg", ".git/a/1.jpg"):
        place(tmp_path / name)
    source = read_source(tmp_path)
    assert len(source.splits["train"]) == 2
    assert source.notes == []
    place(tmp_path / "labels.csv")
    assert read_source(tmp_path).notes == [f"{tmp_path}: 1 file is no image in a class folder, left out"]
    place(tmp_path / "ant" / "Thumbs.db")
    place(tmp_path / "loose.jpg")
    assert read_source(tmp_path).notes == [f"{tmp_path}: 3 files are no image in a class folder, left out"]


def test_an_empty_validation_folder_is_noted_and_left_out(tmp_path):
    flat(tmp_path / "train", ant=2, bee=2)
    (tmp_path / "val" / "ant").mkdir(parents=True)
    source = read_source(tmp_path)
    assert list(source.splits) == ["train"]
    assert source.notes == ["val: no class folders with images, left out"]
    assert list(read_source(tmp_path, val_fraction=0.5).splits) == ["train", "val"]


def test_linked_class_folders_are_followed(tmp_path):
    flat(tmp_path / "elsewhere", ant=2)
    flat(tmp_path / "source", bee=1)
    (tmp_path / "source" / "ant").symlink_to(tmp_path / "elsewhere" / "ant")
    assert len(read_source(tmp_path / "source").splits["train"]) == 3


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = flat(tmp_path / "s", ant=2, bee=2)
    flat(tmp_path / "elsewhere", more=3)
    (root / "ant" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "bee" / "loop").symlink_to(root / "bee")
    source = read_source(root)
    labels = [sample.label for sample in source.splits["train"]]
    assert (labels.count(0), labels.count(1)) == (5, 2)


def test_sizes_are_those_of_the_files(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    place(tmp_path / "ant" / "ant_00.jpg", bytes(1234))
    assert [s.size for s in read_source(tmp_path).splits["train"]] == [1234, len(b"not empty")]


@pytest.mark.parametrize("prefix", ["", "train"])
def test_names_come_from_the_mapping_file(tmp_path, prefix):
    flat(tmp_path / prefix, n01440764=1, n01443537=1, bee=1)
    place(tmp_path / "LOC_synset_mapping.txt", b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    source = read_source(tmp_path)
    assert source.classes == (
        ClassInfo("bee", "bee"),
        ClassInfo("n01440764", "tench, Tinca tinca"),
        ClassInfo("n01443537", "goldfish"),
    )
    assert source.notes == []


def test_validation_images_in_no_class_folder_are_noted(tmp_path):
    flat(tmp_path / "train", ant=1, bee=1)
    place(tmp_path / "val" / "1.jpg")
    source = read_source(tmp_path)
    assert list(source.splits) == ["train"]
    assert source.notes == [
        f"{tmp_path}/val: 1 file is no image in a class folder, left out",
        "val: no class folders with images, left out",
    ]


def test_a_bucket(tmp_path, s3):
    for split in ("train", "val"):
        flat(tmp_path / split, ant=2, bee=1)
    place(tmp_path / "train" / "ant" / "more" / "notes.txt")
    place(tmp_path / "train" / "bee" / ".hidden.jpg")
    for path in tmp_path.rglob("*.*"):
        open_store(s3).write(f"some/{path.relative_to(tmp_path)}", path.read_bytes())
    source, here = read_source(f"{s3}/some/"), read_source(tmp_path)
    assert (source.layout, source.splits, source.classes) == ("folders", here.splits, here.classes)
    assert source.notes[0] == f"{s3}/some/train: 1 file is no image in a class folder, left out"
    assert source.notes[1:] == here.notes[1:]
    assert source.fingerprint() == here.fingerprint()


# Bad input


def bad(tmp_path, message, **options):
    with pytest.raises(UsageError) as refused:
        read_source(tmp_path, **options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "files", [[], ["notes.txt"], ["1.jpg", "2.jpg"], ["a/x.txt", "b/y.txt"], ["train/1.jpg"]]
)
def test_no_images_in_class_folders(tmp_path, files):
    for name in files:
        place(tmp_path / name)
    bad(tmp_path, f"source {tmp_path}: no images found")


def test_one_class(tmp_path):
    bad(flat(tmp_path, ant=5), "found one class (ant)")


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_a_class_without_training_images(tmp_path, fraction):
    flat(tmp_path, bee=2, cat=2)
    (tmp_path / "ant").mkdir()
    bad(tmp_path, "no training images for ant;", val_fraction=fraction)


def test_classes_that_are_in_validation_only(tmp_path):
    flat(tmp_path / "train", ant=1, bee=1)
    flat(tmp_path / "val", **{f"c{k}": 1 for k in range(7)})
    bad(tmp_path, "no training images for c0, c1, c2, c3, c4 and 2 more;")


def test_val_and_validation(tmp_path):
    for split in ("train", "val", "validation"):
        flat(tmp_path / split, ant=1, bee=1)
    bad(tmp_path, "found both val and validation")


@pytest.mark.parametrize("split", ["val", "validation", "test"])
def test_validation_without_training(tmp_path, split):
    flat(tmp_path / split, ant=1, bee=1)
    bad(tmp_path, f"found the folders {split} but no train")


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
