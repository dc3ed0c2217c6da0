"""`alexnet-prep`: output, exit codes and error messages of each command."""

import json
import re
import shutil
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.folders import encoded, members, overwrite, place, times
from helpers.hub_files import write_tar
from helpers.inline import InlineExecutor
from PIL import Image

from cli.prep import main
from pipeline import Dataset
from trainer import load_recipe


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Tasks run in this process."""
    monkeypatch.setattr("pipeline.LocalExecutor", lambda workers: InlineExecutor(), raising=False)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fails(result, code, *fragments):
    """Assert the exit code and that stderr is one error line that holds the fragments."""
    assert result.exit_code == code, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert all(fragment in line for fragment in fragments)


def succeeds(result, *fragments):
    """Assert that a command exits with 0 and prints the fragments."""
    assert result.exit_code == 0, result.output
    assert all(fragment in result.stdout for fragment in fragments)


@pytest.fixture
def source(tmp_path):
    """Class folders: two classes of four images."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for number in range(4):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            place(tmp_path / "source" / name / f"{name}_{number}.jpg", encoded(pixels))
    return tmp_path / "source"


# shard, finish


@pytest.mark.parametrize("more", [(), ("--task", "0/2"), ("--force",)])
def test_a_dry_run_lists_the_source_and_writes_nothing(source, tmp_path, more):
    place(tmp_path / "out" / "thesis.tex")  # in a folder that a preparation refuses
    succeeds(run("shard", source, tmp_path / "out", "--dry-run", *more), "8 train images, 2 classes")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.no_dali
def test_shard_reports_and_info_describes(source, tmp_path):
    out = tmp_path / "out"
    command = ("shard", source, out, "--size", 16, "--val-fraction", 0.25)
    images = (
        "6 train, 2 val images, 2 classes",
        "train: 6 images in 1 shard",
        "copies: val images in train: 0, ",
    )
    succeeds(run(*command), *images)
    before = times(out)
    succeeds(run(*command), *images, "complete already")
    assert before == times(out)
    fails(run("shard", source, out, "--size", 18, "--val-fraction", 0.25), 2, "--size was 16, now 18")
    succeeds(run("info", out), "16 px squares, JPEG quality 95", "2: cat, dog", "images with two labels: 0")
    facts = json.loads(run("info", out, "--json").stdout)
    assert facts["samples"] == {"train": 6, "val": 2}
    assert facts["image"]["size"] == 16


def test_tasks_and_finish(source, tmp_path):
    out = tmp_path / "out"
    command = ("--size", 16, "--shard-samples", 4)
    for task in range(2):
        done = run("shard", source, out, *command, "--task", f"{task}/2")
        succeeds(done, f"task {task} of 2 done, 1 shard; after all tasks, run `alexnet-prep finish {out}`")
    succeeds(run("finish", out), "train: 8 images in 2 shards")
    succeeds(run("shard", source, tmp_path / "whole", *command))
    assert (out / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_source_without_training_images_is_an_evaluation_set(source, tmp_path, split):
    """Also of tars that another tool wrote: there are no statistics and no mean image."""
    place(source / "emu" / "emu.jpg", b"no image")
    out, tars, command = tmp_path / "out", tmp_path / "tars", ("--size", 16, "--splits", f"{split}=.")
    fails(run("shard", source, out, *command, "--val-fraction", 0.5), 2, "--val-fraction 0.5 was asked for")
    for task in range(2):
        succeeds(run("shard", source, out, *command, "--max-bad", 0.2, "--task", f"{task}/2"))
    succeeds(run("finish", out, "--max-bad", 0.2), f"{split}: 8 images in 1 shard", "images skipped: 1")
    shutil.copytree(out / split, tars / split, ignore=shutil.ignore_patterns("*.idx"))
    succeeds(run("stats", tars), f"{split}: 8 images in 1 shard", "it is for evaluation")
    for folder in (out, tars):
        assert not (folder / "mean_image.npy").exists()
        assert json.loads((folder / "manifest.json").read_text())["statistics"] is None
        succeeds(run("verify", folder), "no fault in 8 images")
        succeeds(run("info", folder), " 8 images in 1 shard", "there is no training split")
        fails(run("stats", folder), 2, f"has no split 'train', only {split}")
        fails(run("info", folder, "--preview", tmp_path / "p.png"), 2, f"has no split 'train', only {split}")


@pytest.mark.parametrize("task", ["1", "2/2", "a/b", "-1/2", "1/0", "/"])
def test_bad_task_numbers(source, tmp_path, task):
    fails(run("shard", source, tmp_path / "out", "--task", task), 2, f"error: --task {task}: ")
    assert not (tmp_path / "out" / ".work" / "plan.json").exists()


def test_a_dataset_of_original_files(source, tmp_path):
    out = tmp_path / "out"
    succeeds(run("shard", source, out, "--size", 64, "--keep-original"))
    succeeds(run("info", out), "original size, scaled on loading to a shorter side of 64 px")
    stored = dict(members(out / "train" / "train-000000.tar"))
    assert stored["cat_0.jpg"] == (source / "cat" / "cat_0.jpg").read_bytes()
    succeeds(run("verify", out), "no fault in 8 images")


def test_an_unusable_source(tmp_path):
    fails(run("shard", tmp_path / "nothing", tmp_path / "out"), 2, "does not exist")
    assert not (tmp_path / "out").exists()


def test_bad_images_are_reported_up_to_a_limit(source, tmp_path):
    (source / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    command = ("shard", source, tmp_path / "out", "--size", 16)
    fails(run(*command), 1, "1 of 9 images cannot be decoded, more than --max-bad 1.00%", "cat/broken.jpg")
    assert not (tmp_path / "out" / "manifest.json").exists()
    succeeds(run(*command, "--max-bad", 0.2), "images skipped: 1, converted: 0")


@pytest.mark.parametrize(
    "options",
    [
        ("--val-fraction", "1.5"),
        ("--quality", "0"),
        ("--size", "x"),
        ("--keep-original", "--keep-aspect"),
        ("--layout", "parquet"),
    ],
)
def test_bad_option_values_exit_2(source, tmp_path, options):
    assert run("shard", source, tmp_path / "out", *options).exit_code == 2


# verify, stats, info, demo


def test_verify_names_each_fault(tiny_dataset, tmp_path):
    out = shutil.copytree(tiny_dataset.root, tmp_path / "out")
    shards = f"{len(list(out.rglob('*.tar')))} shards"
    succeeds(run("verify", out, "--fast"), f"no fault in 120 images in {shards}", "images were not decoded")
    tar = out / "train" / "train-000000.tar"
    with tarfile.open(tar) as archive:
        member = archive.getmembers()[4]
    overwrite(tar, member.offset_data + 700, b"\xff\xd9")  # the image ends here
    (out / "val" / "val-000000.idx").unlink()
    done = run("verify", out)
    fails(done, 1, f"error: {out}: ", f" faults (120 images in {shards}")
    for fragment in ("train/train-000000.tar: ", member.name.removesuffix(".jpg"), "val/val-000000.idx: "):
        assert fragment in done.stdout


@pytest.mark.parametrize("command", ["verify", "stats", "info"])
def test_what_is_no_dataset(source, command):
    (source / "cat").rename(source / "empty")
    fails(run(command, source), 2, str(source))


def test_stats_of_our_own_shards_are_compared(tiny_dataset):
    before = (tiny_dataset.root / "manifest.json").read_bytes()
    succeeds(
        run("stats", tiny_dataset.root),
        "(measured on decoded pixels)",
        "the statistics in the manifest, measured on source pixels, differ by 0.",
    )
    assert (tiny_dataset.root / "manifest.json").read_bytes() == before
    both = json.loads(run("stats", tiny_dataset.root, "--json").stdout)
    assert [both[name]["measured_on"] for name in ("manifest", "decoded")] == ["source", "decoded"]
    assert both["decoded"]["pixels"] == both["manifest"]["pixels"] == 90 * 72 * 72


def test_stats_make_other_tools_tars_a_dataset(tiny_dataset, tmp_path):
    tars, no_index = tmp_path / "tars", shutil.ignore_patterns("*.idx")
    for split in ("train", "val"):
        shutil.copytree(tiny_dataset.root / split, tars / split, ignore=no_index)
    succeeds(run("stats", tars), "train: 90 images in", f"indexed; train on it with `alexnet-train {tars}`")
    assert len(Dataset.open(tars).samples("val")) == 30
    succeeds(run("verify", tars), "no fault in 120 images")
    succeeds(run("info", tars), "72 px squares")


def test_tars_that_are_sorted_by_class_are_sharded_anew_by_the_command_that_is_named(tmp_path):
    tars, out, rng = tmp_path / "tars", tmp_path / "out", np.random.default_rng(0)
    rows = [
        {"__key__": f"{k:03d}", "jpg": encoded(rng.integers(0, 256, (16, 16, 3), np.uint8)), "cls": k // 32}
        for k in range(96)
    ]
    write_tar(tars / "train.tar", rows)
    for command in ("stats", "info"):
        done = run(command, tars)
        succeeds(done, "its training images are sorted by class")
    shard = re.search(r"`alexnet-prep (shard .*?)`", done.stdout)[1].replace("OTHER", str(out))
    succeeds(run(*shard.split(), "--size", 16, "--workers", 1), "87 train, 9 val")
    assert "sorted by class" not in run("info", out).stdout


def test_tars_without_a_validation_split_are_adopted_with_the_command_that_makes_one(tiny_dataset, tmp_path):
    tars, out = tmp_path / "tars", tmp_path / "out"
    shutil.copytree(tiny_dataset.root / "train", tars / "train", ignore=shutil.ignore_patterns("*.idx"))
    done = run("stats", tars)
    settings = re.search(f"`alexnet-train {tars} --set (.*?)`, without validation", done.stdout)[1]
    assert load_recipe("paper", [settings]).schedule != "plateau"  # looks at validations
    command = re.search(r"`alexnet-prep (shard .*?)`", done.stdout)[1].replace("OTHER", str(out))
    succeeds(run(*command.split(), "--size", 72, "--workers", 1), "80 train, 10 val")


def test_info_on_a_damaged_dataset(tiny_dataset, tmp_path):
    out = shutil.copytree(tiny_dataset.root, tmp_path / "out")
    tar = out / "train" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    fails(run("info", out), 2, "train-000000.tar", "but the manifest says")


def test_preview_draws_stored_and_augmented_crops(tiny_dataset, tmp_path):
    succeeds(run("info", tiny_dataset.root, "--preview", tmp_path / "crops.png", "--noise", "source"))
    with Image.open(tmp_path / "crops.png") as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("RGB")).std() > 1


def test_demo_draws_a_source(tmp_path):
    succeeds(run("demo", tmp_path / "images", "--images", 60))
    assert len(list((tmp_path / "images" / "train").iterdir())) == 10
