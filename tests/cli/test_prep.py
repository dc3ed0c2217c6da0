"""`alexnet-prep shard`, `info` and `demo`: output and error messages."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli.prep import main


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


def fails(result, code, *fragments):
    """Assert the exit code and that stderr is one error line that holds the fragments."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for fragment in fragments:
        assert fragment in lines[0]


@pytest.fixture
def source(tmp_path):
    """Class folders: two classes of four images."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "source" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{number}.jpg")
    return tmp_path / "source"


def test_shard_reports_and_info_describes(run, source, tmp_path):
    out = tmp_path / "out"
    result = run("shard", source, out, "--size", 16, "--val-fraction", 0.25, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "6 train, 2 val images, 2 classes" in result.stdout
    assert "train: 6 images in 1 shards" in result.stdout
    result = run("info", out)
    assert result.exit_code == 0
    assert "16 px squares, JPEG quality 95" in result.stdout
    assert "2: cat, dog" in result.stdout
    facts = json.loads(run("info", out, "--json").stdout)
    assert facts["samples"] == {"train": 6, "val": 2}
    assert facts["image"]["size"] == 16


def test_a_second_run_leaves_the_first_alone(run, source, tmp_path):
    out = tmp_path / "out"
    arguments = ("shard", source, out, "--size", 16, "--workers", 1)
    assert run(*arguments).exit_code == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert run(*arguments).exit_code == 0
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def test_preview_draws_stored_and_augmented_crops(run, tiny_dataset, tmp_path):
    result = run("info", tiny_dataset.root, "--preview", tmp_path / "crops.png", "--noise", "source")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "crops.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    crop = 63  # 224 / 256 of 72 px
    rows, columns = 6, 8
    assert pixels.shape[1] >= columns * crop
    assert pixels.shape[0] >= rows * crop
    cells = pixels[-12 - crop : -12]  # the last row
    left = (pixels.shape[1] - (columns * (crop + 6) - 6)) // 2
    crops = [cells[:, left + k * (crop + 6) :][:, :crop] for k in range(columns)]
    assert all(c.std() > 1 for c in crops), "an empty cell"
    assert any((crops[1] != other).any() for other in crops[2:]), "crops do not vary"


def test_demo_draws_a_source(run, tmp_path):
    result = run("demo", tmp_path / "images", "--images", 60)
    assert result.exit_code == 0
    assert len(list((tmp_path / "images" / "train").iterdir())) == 10


@pytest.mark.parametrize(
    ("make", "fragments"),
    [
        (lambda s: None, ["does not exist"]),
        (lambda s: s.write_text("x"), ["it is a file"]),
        (lambda s: s.mkdir(), ["no images found"]),
        (lambda s: (s / "cat").mkdir(parents=True), ["no images found"]),
    ],
)
def test_unusable_sources(run, tmp_path, make, fragments):
    make(tmp_path / "nothing")
    fails(run("shard", tmp_path / "nothing", tmp_path / "out"), 2, *fragments)
    assert not (tmp_path / "out").exists()


def test_one_class_and_an_empty_class(run, source, tmp_path):
    (source / "empty").mkdir()
    fails(run("shard", source, tmp_path / "out"), 2, "no training images for empty")
    (source / "empty").rmdir()
    (source / "dog").rename(tmp_path / "dog")
    fails(run("shard", source, tmp_path / "out"), 2, "found one class (cat)")


def test_bad_images_are_reported_up_to_a_limit(run, source, tmp_path):
    (source / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    out = tmp_path / "out"
    arguments = ("shard", source, out, "--size", 16, "--workers", 1)
    result = run(*arguments)
    fails(result, 1, "1 of 9 images cannot be decoded, more than --max-bad 1.00%", "cat/broken.jpg")
    assert not (out / "manifest.json").exists()
    result = run(*arguments, "--max-bad", 0.2)
    assert result.exit_code == 0, result.output
    assert "images skipped: 1, converted: 0" in result.stdout
    header, row = (out / "report.csv").read_text().splitlines()
    assert header == "path,reason,action"
    assert row.startswith("cat/broken.jpg,")
    assert row.endswith(",skipped")


def test_a_link_to_nowhere_is_named(run, source, tmp_path):
    (source / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    fails(run("shard", source, tmp_path / "out"), 2, "cat/gone.jpg", "No such file", "restore it or check")


def test_other_options_on_the_same_output_are_refused(run, source, tmp_path):
    out = tmp_path / "out"
    assert run("shard", source, out, "--size", 16, "--workers", 1).exit_code == 0
    fails(run("shard", source, out, "--size", 18, "--workers", 1), 2, "--size was 16, now 18")


def test_info_on_what_is_no_dataset(run, source, tmp_path):
    fails(run("info", source), 2, "not a prepared dataset")
    out = tmp_path / "out"
    assert run("shard", source, out, "--size", 16, "--workers", 1).exit_code == 0
    manifest = out / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 1', '"format": 99'))
    fails(run("info", out), 2, "format version 99, but this release reads 1")
    manifest.write_text(text[:100])
    fails(run("info", out), 2, "damaged")
    manifest.write_text(text)
    tar = out / "train" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    fails(run("info", out), 2, "train-000000.tar", "but the manifest says")


def test_a_full_disk_is_one_line(run, source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    fails(run("shard", source, tmp_path / "out", "--workers", 1), 1, "No space left on device")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix != ".lock"]


@pytest.mark.parametrize("option", [("--val-fraction", "1.5"), ("--quality", "0"), ("--size", "x")])
def test_bad_option_values_exit_2(run, source, tmp_path, option):
    assert run("shard", source, tmp_path / "out", *option).exit_code == 2


def test_without_dali_the_message_says_what_to_install(run, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("info", tiny_dataset.root, "--preview", tmp_path / "p.png")
    assert result.exit_code == 2
    assert "pip install 'alexnet-toolkit[cuda13]'" in result.stderr


def test_elsewhere_than_linux_the_message_says_so(run, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    result = run("info", tiny_dataset.root, "--preview", tmp_path / "p.png")
    assert result.exit_code == 2
    assert "exists for Linux only" in result.stderr
