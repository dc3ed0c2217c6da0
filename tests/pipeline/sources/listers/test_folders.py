import pytest
from helpers.folders import flat, place, refused

from pipeline.dataset.manifest import ClassInfo
from pipeline.sources.detection import read_source


def paths(source, split):
    return [sample.path for sample in source.splits[split]]


# Layouts


def test_flat_class_folders_are_training_data(tmp_path):
    flat(tmp_path, bee=1, ant=2)
    place(tmp_path / "ant" / "ant_00.jpg", bytes(1234))
    source = read_source(tmp_path)
    assert (source.root, source.layout, source.notes) == (str(tmp_path), "folders", [])
    assert source.classes == (ClassInfo("ant", "ant"), ClassInfo("bee", "bee"))
    assert list(source.splits) == ["train"]
    assert [(s.path, s.label, s.key, s.size) for s in source.splits["train"]] == [
        ("ant/ant_00.jpg", 0, "ant_00", 1234),
        ("ant/ant_01.jpg", 0, "ant_01", len(b"not empty")),
        ("bee/bee_00.jpg", 1, "bee_00", len(b"not empty")),
    ]


@pytest.mark.parametrize("folder", ["val", "validation"])
def test_split_folders(tmp_path, folder):
    flat(tmp_path / "train", ant=3, bee=3, cat=1)
    flat(tmp_path / folder, ant=1, cat=1)  # a class may be missing here
    flat(tmp_path / "test", ant=1, bee=1)
    place(tmp_path / "README.txt")
    source = read_source(tmp_path)
    assert len(source.splits["train"]) == 7
    assert paths(source, "val") == [f"{folder}/ant/ant_00.jpg", f"{folder}/cat/cat_00.jpg"]
    assert paths(source, "test") == ["test/ant/ant_00.jpg", "test/bee/bee_00.jpg"]
    assert [sample.label for sample in source.splits["val"]] == [0, 2]


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


def test_hidden_files_are_left_out_and_other_files_are_noted(tmp_path):
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


def test_a_validation_folder_without_images_in_class_folders_is_noted_and_left_out(tmp_path):
    flat(tmp_path / "train", ant=2, bee=2)
    (tmp_path / "val" / "ant").mkdir(parents=True)
    place(tmp_path / "val" / "1.jpg")
    source = read_source(tmp_path)
    assert list(source.splits) == ["train"]
    assert source.notes == [
        f"{tmp_path}/val: 1 file is no image in a class folder, left out",
        "val: no class folders with images, left out",
    ]
    assert list(read_source(tmp_path, val_fraction=0.5).splits) == ["train", "val"]


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


# Bad input


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no images found"),
        (["a/x.txt", "b/y.txt"], "no images found"),
        (["train/a/1.jpg", "val/a/1.jpg", "validation/a/1.jpg"], "found both val and validation"),
        (["val/a/1.jpg", "val/b/1.jpg"], "found the folders val but no train"),
        (["test/a/1.jpg", "validation/b/1.jpg"], "found the folders test, validation but no train"),
    ],
)
def test_folders_without_images_or_without_training_images(tmp_path, files, message):
    for name in files:
        place(tmp_path / name)
    refused(lambda: read_source(tmp_path), f"source {tmp_path}: {message}")


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_a_class_without_training_images(tmp_path, fraction):
    (flat(tmp_path, bee=2, cat=2) / "ant").mkdir()
    refused(lambda: read_source(tmp_path, val_fraction=fraction), "no training images for ant;")
