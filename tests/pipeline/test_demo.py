from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import place, tree
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import demo
from pipeline.errors import UsageError


def color_histograms(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(np.int64)
    red, green, blue = (pixels >> 5).T
    joint = np.bincount(red * 64 + green * 8 + blue, minlength=512)
    channels = [np.bincount(channel >> 4, minlength=16) for channel in pixels.T]
    return np.concatenate([joint, *channels]) / len(pixels)


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


def test_tree_holds_every_class_in_both_splits(tiny_source):
    assert {path.name for path in tiny_source.iterdir()} == {"train", "val", ".demo.json"}
    for split, count in (("train", 9), ("val", 3)):
        assert sorted(path.name for path in (tiny_source / split).iterdir()) == list(demo.CLASSES)
        for name in demo.CLASSES:
            files = [path.name for path in (tiny_source / split / name).iterdir()]
            assert len(files) == count
            assert all(file.startswith(f"{name}_") and file.endswith(".jpg") for file in files)
    assert (tiny_source / "train" / "ring" / "ring_00001.jpg").is_file()


def test_color_modes_and_sizes_vary(tiny_source):
    modes, sizes = Counter(), set()
    for path in (tiny_source / "train").rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.format == "JPEG"
            modes[image.mode] += 1
            sizes.add(image.size)
    assert modes == {"RGB": 88, "L": 2}
    assert Counter(demo._color_modes(list(range(320)), seed=0).values()) == {"L": 6, "CMYK": 2}
    aspects = np.array([width / height for width, height in sizes])
    assert len(sizes) > 70
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


def test_color_does_not_tell_the_classes_apart(tiny_source):
    features, labels = {}, {}
    for split in ("train", "val"):
        paths = sorted((tiny_source / split).rglob("*.jpg"))
        features[split] = np.array([color_histograms(path) for path in paths])
        labels[split] = [path.parent.name for path in paths]
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0))
    classifier.fit(features["train"], labels["train"])
    assert classifier.score(features["val"], labels["val"]) <= 0.5


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (("a", 7), ("again", 7), ("other", 8)):
        demo.draw_demo(tmp_path / name, images=40, seed=seed)
    one, again, other = (tree(tmp_path / name) for name in ("a", "again", "other"))
    assert one == again
    assert one.keys() == other.keys()
    assert not set(one.values()) & set(other.values())


def test_force_replaces_what_was_drawn_and_nothing_else(tmp_path):
    out, beside = tmp_path / "out", tmp_path / ".out.tmp" / "mine"
    place(beside)  # once the name of a folder that was removed
    demo.draw_demo(out, images=50, seed=7)
    with pytest.raises(UsageError, match="--force"):
        demo.draw_demo(out, images=40, seed=7)
    mine = place(out / "train" / "star" / "star_00099.jpg")
    demo.draw_demo(out, images=40, seed=8, force=True)
    demo.draw_demo(tmp_path / "other", images=40, seed=8)
    assert tree(out) == tree(tmp_path / "other") | {"train/star/star_00099.jpg": tree(mine.parent)[mine.name]}
    with pytest.raises(UsageError, match=r"star_00099\.jpg: is in the way"):
        demo.draw_demo(out, images=1000, force=True)
    foreign = place(tmp_path / "foreign" / "train" / "star" / "star_00001.jpg")
    with pytest.raises(UsageError, match="not empty"):
        demo.draw_demo(tmp_path / "foreign", images=40, force=True)
    assert foreign.exists()
    assert beside.exists()


@pytest.mark.parametrize("out", ["out", "deep/out"])
def test_an_empty_or_new_folder_is_filled_and_progress_reported(tmp_path, out):
    (tmp_path / "out").mkdir()
    seen = []
    counts = demo.draw_demo(tmp_path / out, images=40, on_progress=lambda *done: seen.append(done))
    assert counts == {"train": 30, "val": 10}
    assert seen == [(done, 40) for done in range(1, 41)]
    assert len(list((tmp_path / out / "val").iterdir())) == 10
    assert len(tree(tmp_path / out)) == 41  # with the record


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
    assert tree(tmp_path).keys() == {"full/kept.txt"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_nothing(tmp_path, error):
    def stop(done, total):
        if done == 20:
            raise error

    with pytest.raises(error):
        demo.draw_demo(tmp_path / "out", images=40, on_progress=stop)
    assert list(tmp_path.iterdir()) == []
