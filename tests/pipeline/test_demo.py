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
    assert demo.draw_demo(out) == {"train": 1600, "val": 400}
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
    for stream in range(5):
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

    shares = np.array([[share(label, stream) for stream in range(60)] for label in range(10)])
    assert np.ptp(shares.mean(axis=1)) < 0.04
    assert np.ptp(shares.std(axis=1)) < 0.02


def test_tree_holds_every_class_in_both_splits(source):
    assert {path.name for path in source.iterdir()} == {"train", "val"}
    for split, count in (("train", 160), ("val", 40)):
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
    assert modes == {"RGB": 1560, "L": 32, "CMYK": 8}
    aspects = np.array([width / height for width, height in sizes])
    assert len(sizes) > 1000
    assert aspects.min() < 0.7
    assert aspects.max() > 1.4


def test_every_color_mode_holds_the_same_image(tmp_path):
    for mode in ("RGB", "L", "CMYK"):
        demo._write_image(tmp_path / mode, index=3, seed=1, mode=mode)
    images = {}
    for mode in ("RGB", "L", "CMYK"):
        with Image.open(next((tmp_path / mode).rglob("*.jpg"))) as image:
            assert image.mode == mode
            images[mode] = np.asarray(image.convert("L")).astype(float)
    assert np.abs(images["L"] - images["RGB"]).mean() < 4
    assert np.abs(images["CMYK"] - images["RGB"]).mean() < 4


def test_400_images_have_both_rare_color_modes_in_train():
    train = [index for index in range(400) if index // 10 % 5 != 1]
    assert set(demo._color_modes(train, seed=0).values()) == {"L", "CMYK"}


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
    assert len(files) == 40
    assert relative_files(tmp_path / "again") == relative_files(tmp_path / "other") == files
    same = filecmp.cmpfiles(tmp_path / "a", tmp_path / "again", files, shallow=False)
    other = filecmp.cmpfiles(tmp_path / "a", tmp_path / "other", files, shallow=False)
    assert same == (files, [], [])
    assert other == ([], files, [])


def test_smallest_request_fills_both_splits_and_reports_progress(tmp_path):
    seen: list[int] = []
    counts = demo.draw_demo(tmp_path / "deep" / "out", images=40, progress=seen.append)
    assert counts == {"train": 30, "val": 10}
    assert seen == list(range(1, 41))
    assert len(list((tmp_path / "deep" / "out" / "val").iterdir())) == 10


def test_an_empty_folder_is_filled_and_stale_staging_is_dropped(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "stale").touch()
    demo.draw_demo(tmp_path / "out", images=40)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(relative_files(tmp_path / "out")) == 40


def test_refuses_what_is_already_there(tmp_path):
    kept = tmp_path / "full" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(UsageError, match="found a folder that is not empty"):
        demo.draw_demo(kept.parent, images=40)
    with pytest.raises(UsageError, match="found a file"):
        demo.draw_demo(kept, images=40)
    assert kept.read_text() == "mine"
    assert relative_files(tmp_path) == ["full/kept.txt"]


def test_refuses_too_few_images(tmp_path):
    with pytest.raises(UsageError, match="asked for 39 demo images"):
        demo.draw_demo(tmp_path / "out", images=39)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, error):
    calls = 0
    draw = demo.draw

    def failing(label, rng):
        nonlocal calls
        calls += 1
        if calls == 20:
            raise error
        return draw(label, rng)

    monkeypatch.setattr(demo, "draw", failing)
    with pytest.raises(error):
        demo.draw_demo(tmp_path / "out", images=40)
    assert calls == 20
    assert list(tmp_path.iterdir()) == []
