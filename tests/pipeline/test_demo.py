import filecmp
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import demo
from pipeline.errors import UsageError


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "source"
    assert demo.draw_demo(out, images=400) == {"train": 320, "val": 80}
    return out


def relative_files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def color_histograms(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(np.int64)
    red, green, blue = (pixels >> 5).T
    joint = np.bincount(red * 64 + green * 8 + blue, minlength=512)
    channels = [np.bincount(channel >> 4, minlength=16) for channel in pixels.T]
    return np.concatenate([joint, *channels]) / len(pixels)


def test_classes_are_ten_sorted_plain_words():
    assert len(set(demo.CLASSES)) == 10
    assert list(demo.CLASSES) == sorted(demo.CLASSES)
    assert all(name.isalpha() and name.islower() for name in demo.CLASSES)


@pytest.mark.parametrize("label", range(10))
def test_draw_gives_rgb_within_the_stated_sizes(label):
    for stream in range(2):
        image = demo.draw(label, np.random.default_rng(stream))
        height, width, channels = image.shape
        assert image.dtype == np.uint8
        assert channels == 3
        assert 160 <= min(height, width) <= 420
        assert max(height, width) <= 1.5 * min(height, width)


@pytest.mark.parametrize("label", [-1, 10])
def test_draw_refuses_a_label_outside_the_classes(label):
    with pytest.raises(ValueError, match="label"):
        demo.draw(label, np.random.default_rng(0))


def test_ink_area_has_the_same_distribution_in_every_class():
    def share(label, stream):
        return demo._ink(label, 200, 200, np.random.default_rng([label, stream])).mean()

    shares = np.array([[share(label, stream) for stream in range(40)] for label in range(10)])
    assert np.ptp(shares.mean(axis=1)) < 0.04
    assert np.ptp(shares.std(axis=1)) < 0.02


def test_tree_holds_every_class_in_both_splits(source):
    assert {path.name for path in source.iterdir()} == {"train", "val"}
    for split, count in (("train", 32), ("val", 8)):
        assert sorted(path.name for path in (source / split).iterdir()) == list(demo.CLASSES)
        for name in demo.CLASSES:
            files = [path.name for path in (source / split / name).iterdir()]
            assert len(files) == count
            assert all(file.startswith(f"{name}_") and file.endswith(".jpg") for file in files)
    assert (source / "train" / "ring" / "ring_00001.jpg").is_file()


def test_color_modes_and_sizes_vary(source):
    modes, sizes = Counter(), set()
    for path in (source / "train").rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.format == "JPEG"
            modes[image.mode] += 1
            sizes.add(image.size)
    assert modes == {"RGB": 312, "L": 6, "CMYK": 2}
    aspects = np.array([width / height for width, height in sizes])
    assert len(sizes) > 250
    assert aspects.min() < 0.7
    assert aspects.max() > 1.4


def test_every_color_mode_holds_the_same_image(tmp_path):
    images = {}
    for mode in ("RGB", "L", "CMYK"):
        demo._write_image(tmp_path / mode, index=3, seed=1, mode=mode)
        with Image.open(next((tmp_path / mode).rglob("*.jpg"))) as image:
            assert image.mode == mode
            images[mode] = np.asarray(image.convert("L")).astype(float)
    assert np.abs(images["L"] - images["RGB"]).mean() < 4
    assert np.abs(images["CMYK"] - images["RGB"]).mean() < 4


def test_color_does_not_tell_the_classes_apart(source):
    features, labels = {}, {}
    for split in ("train", "val"):
        paths = sorted((source / split).rglob("*.jpg"))
        features[split] = np.array([color_histograms(path) for path in paths])
        labels[split] = [path.parent.name for path in paths]
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0))
    classifier.fit(features["train"], labels["train"])
    assert classifier.score(features["val"], labels["val"]) <= 0.5


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (("a", 7), ("again", 7), ("other", 8)):
        demo.draw_demo(tmp_path / name, images=40, seed=seed)
    files = relative_files(tmp_path / "a")
    assert relative_files(tmp_path / "again") == relative_files(tmp_path / "other") == files
    same = filecmp.cmpfiles(tmp_path / "a", tmp_path / "again", files, shallow=False)
    other = filecmp.cmpfiles(tmp_path / "a", tmp_path / "other", files, shallow=False)
    assert (same, other) == ((files, [], []), ([], files, []))


@pytest.mark.parametrize("out", ["out", "deep/out"])
def test_an_empty_or_new_folder_is_filled_and_progress_reported(tmp_path, out):
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "left-by-a-killed-run").touch()
    seen = []
    counts = demo.draw_demo(tmp_path / out, images=40, on_progress=lambda *done: seen.append(done))
    assert counts == {"train": 30, "val": 10}
    assert seen == [(done, 40) for done in range(1, 41)]
    assert len(list((tmp_path / out / "val").iterdir())) == 10
    assert len(relative_files(tmp_path / out)) == 40


def test_refuses_what_is_already_there_and_too_few_images(tmp_path):
    kept = tmp_path / "full" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    for out, images, message in (
        (kept.parent, 40, "found a folder that is not empty"),
        (kept, 40, "found a file"),
        (tmp_path / "out", 39, "asked for 39 demo images"),
    ):
        with pytest.raises(UsageError, match=message):
            demo.draw_demo(out, images=images)
    assert kept.read_text() == "mine"
    assert relative_files(tmp_path) == ["full/kept.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_nothing(tmp_path, error):
    def stop(done, total):
        if done == 20:
            raise error

    with pytest.raises(error):
        demo.draw_demo(tmp_path / "out", images=40, on_progress=stop)
    assert list(tmp_path.iterdir()) == []
