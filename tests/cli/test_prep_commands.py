"""`alexnet-prep finish`, `verify` and `stats`, and `shard` with --task, --keep-original and --layout."""

import json
import shutil
import tarfile

import pytest
from click.testing import CliRunner

from cli.prep import main
from pipeline import Dataset, draw_demo


@pytest.fixture
def run():
    def invoke(*words):
        return CliRunner().invoke(main, [str(word) for word in words])

    return invoke


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Class folders of 40 drawn images, ten classes."""
    folder = tmp_path_factory.mktemp("commands") / "source"
    draw_demo(folder, images=40)
    return folder


@pytest.fixture(scope="module")
def dataset(source, tmp_path_factory):
    """The source prepared at 64 pixels. Read-only."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    done = CliRunner().invoke(main, ["shard", str(source), str(out), "--size", "64", "--workers", "1"])
    assert done.exit_code == 0, done.output
    return out


def test_tasks_and_finish(run, source, dataset, tmp_path):
    out = tmp_path / "out"
    for task in range(2):
        done = run("shard", source, out, "--size", 64, "--workers", 1, "--task", f"{task}/2")
        assert done.exit_code == 0
        assert (
            f"task {task} of 2 done, 1 shards; after all tasks, run `alexnet-prep finish {out}`"
            in done.stdout
        )
    done = run("finish", out)
    assert done.exit_code == 0
    assert "train: 30 images in 1 shards" in done.stdout
    assert (out / "manifest.json").read_bytes() == (dataset / "manifest.json").read_bytes()


@pytest.mark.parametrize("task", ["1", "2/2", "a/b", "-1/2", "1/0", "/"])
def test_bad_task_numbers(run, source, tmp_path, task):
    done = run("shard", source, tmp_path / "out", "--task", task)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: --task {task}: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out" / ".work" / "plan.json").exists()


def test_verify_finds_nothing_in_a_good_dataset(run, dataset):
    done = run("verify", dataset, "--workers", 1)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{dataset}: no fault in 40 images in 2 shards, ")
    done = run("verify", dataset, "--workers", 1, "--fast")
    assert done.exit_code == 0
    assert done.stdout.endswith("; images were not decoded\n")


def test_verify_names_each_fault(run, dataset, tmp_path):
    out = shutil.copytree(dataset, tmp_path / "out")
    tar = out / "train" / "train-000000.tar"
    with tarfile.open(tar) as archive:
        at = archive.getmembers()[4].offset_data
        name = archive.getmembers()[4].name
    data = bytearray(tar.read_bytes())
    data[at + 700 : at + 702] = b"\xff\xd9"  # the image ends here
    tar.write_bytes(data)
    (out / "val" / "val-000000.idx").unlink()
    done = run("verify", out, "--workers", 1)
    assert done.exit_code == 1
    assert "train/train-000000.tar: " in done.stdout
    assert name.removesuffix(".jpg") in done.stdout
    assert "val/val-000000.idx: " in done.stdout
    assert done.stderr.startswith(f"error: {out}: ")
    assert " faults (40 images in 2 shards" in done.stderr


def test_verify_without_a_dataset(run, tmp_path):
    done = run("verify", tmp_path)
    assert done.exit_code == 2
    assert "not a prepared dataset" in done.stderr


def test_stats_of_our_own_shards_are_compared(run, dataset):
    before = (dataset / "manifest.json").read_bytes()
    done = run("stats", dataset, "--workers", 1)
    assert done.exit_code == 0
    assert "(measured on decoded pixels)" in done.stdout
    assert (
        f"{dataset}: the statistics in the manifest, measured on source pixels, differ by 0." in done.stdout
    )
    assert (dataset / "manifest.json").read_bytes() == before
    both = json.loads(run("stats", dataset, "--workers", 1, "--json").stdout)
    assert both["manifest"]["measured_on"] == "source"
    assert both["decoded"]["measured_on"] == "decoded"
    assert both["decoded"]["pixels"] == both["manifest"]["pixels"] == 30 * 64 * 64


def test_stats_make_other_tools_tars_a_dataset(run, dataset, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(dataset / split, tmp_path / "tars" / split, ignore=shutil.ignore_patterns("*.idx"))
    done = run("stats", tmp_path / "tars", "--workers", 1)
    assert done.exit_code == 0
    assert "train: 30 images in 1 shards" in done.stdout
    assert f"indexed; train on it with `alexnet-train {tmp_path / 'tars'}`" in done.stdout
    assert Dataset.open(tmp_path / "tars").samples("val") == 10
    assert "no fault in 40 images" in run("verify", tmp_path / "tars", "--workers", 1).stdout
    assert "64 px squares" in run("info", tmp_path / "tars").stdout


def test_stats_of_nothing(run, tmp_path):
    done = run("stats", tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_dataset_of_original_files(run, source, tmp_path):
    out = tmp_path / "out"
    done = run("shard", source, out, "--size", 64, "--workers", 1, "--keep-original")
    assert done.exit_code == 0
    facts = run("info", out).stdout
    assert "original size, scaled on loading to a shorter side of 64 px" in facts
    first = next(source.glob("train/*/*"))
    with tarfile.open(out / "train" / "train-000000.tar") as archive:
        assert archive.extractfile(f"{first.stem}.jpg").read() == first.read_bytes()
    assert "no fault in 40 images" in run("verify", out, "--workers", 1).stdout


def test_two_ways_of_keeping_are_refused(run, source, tmp_path):
    done = run("shard", source, tmp_path / "out", "--keep-original", "--keep-aspect")
    assert done.exit_code == 2
    assert "give one of them" in done.stderr


def test_a_layout_can_be_forced(run, source, tmp_path):
    done = run("shard", source, tmp_path / "out", "--layout", "parquet")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: source {source}: ")
    assert "(folders)" in run("shard", source, tmp_path / "out", "--layout", "folders", "--size", 16).stdout
