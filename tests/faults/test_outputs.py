"""Commands whose output goes nowhere: the work is done all the same, and the exit code tells."""

import json

import pytest
from helpers.conditions import one_line, run

pytestmark = pytest.mark.slow

TINY = (
    "--recipe",
    "demo",
    "--set",
    "crop=64",
    "--set",
    "width=0.05",
    "--set",
    "compile=false",
    "--max-steps",
    2,
)


def test_a_reader_that_leaves_ends_no_training(tiny_dataset, tmp_path, folder_of_namesakes):
    """Two processes: one of those that the command starts prints; neither imports from the current folder."""
    out = tmp_path / "run"
    arguments = (tiny_dataset.root, *TINY, "--cpus", 2, "--out", out)
    done = run("alexnet-train", *arguments, stdout="one line", cwd=folder_of_namesakes)
    assert done.code == 0, done.stderr
    assert done.stdout
    assert not {"Traceback", "Broken", "error:"} & set(done.stderr.split())
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    assert (out / "last.pt").is_file()


def test_a_command_that_prints_ends_quietly_without_a_reader_and_says_where_a_disk_is_full(tiny_dataset):
    gone = run("alexnet-prep", "info", tiny_dataset.root, stdout="gone")
    assert (gone.code, gone.stderr) == (141, "")
    assert run("alexnet-prep", "info", tiny_dataset.root, stdout="closed").code == 0
    full = run("alexnet-prep", "info", tiny_dataset.root, stdout="full")
    assert full.code == 1
    one_line(full.stderr, "No space left on device")
