"""Ctrl-C at several moments: no traceback, no work that goes on, and a true word about what is kept."""

import os
import signal
import time
from pathlib import Path

import pytest
from helpers.conditions import ended, one_line, start
from helpers.folders import needs_proc

pytestmark = pytest.mark.slow

RUN = ("--recipe", "demo", "--set", "crop=64", "--set", "width=0.05", "--set", "compile=false")


@needs_proc
def test_a_command_that_is_still_importing_ends_without_a_traceback(tiny_dataset, tmp_path):
    process = start("alexnet-train", tiny_dataset.root, "--out", tmp_path / "run", *RUN)
    while b"libtorch" not in Path(f"/proc/{process.pid}/maps").read_bytes():
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to all processes
    done = ended(process)
    assert done.code in (130, -signal.SIGINT)
    assert done.stderr in ("", "error: stopped\n")


def test_workers_that_are_still_importing_end_without_a_traceback(tiny_source, tmp_path):
    process = start("alexnet-prep", "shard", tiny_source, tmp_path / "out", "--workers", 4)
    process.stdout.readline()  # the source is listed
    while not (tmp_path / "out" / ".work").exists():
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    done = ended(process)
    assert done.code == 130
    one_line(done.stderr, "stopped; the same command continues")


def test_processes_of_a_run_that_are_still_importing_end_without_a_traceback(tiny_dataset, tmp_path):
    process = start("alexnet-train", tiny_dataset.root, "--out", tmp_path / "run", "--cpus", 2, *RUN)
    assert b"training on 2 CPU processes" in process.stderr.readline()
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    done = ended(process)
    assert done.code == 130
    assert one_line(done.stderr) == "error: stopped"  # nothing is kept yet
