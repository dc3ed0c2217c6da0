"""Commands that work in one folder at the same time, and the locks of those that were killed."""

import json
import os
import signal
import time

import pytest
from click.testing import CliRunner
from helpers.conditions import ended, one_line, run, start
from helpers.folders import tree, write_source
from helpers.training_runs import command

from cli.train import main

pytestmark = pytest.mark.slow


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def holder(folder, name="run.lock"):
    """Number of the process that holds a lock, 0 without a lock."""
    try:
        return int(json.loads((folder / name).read_bytes())["pid"])
    except (FileNotFoundError, ValueError):  # in the making
        return 0


@pytest.fixture
def begin():
    """Start a command, which is killed at the end of the test if it still runs."""
    started = []

    def begin(*words):
        started.append(start(*words))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_a_run_has_one_process_at_a_time(begin, tiny_dataset, tmp_path):
    out = tmp_path / "run"
    train = command(tiny_dataset.root, out, epochs=100_000, compile="false")
    first = begin("alexnet-train", *train)
    wait_for((out / "last.pt").exists)
    os.killpg(first.pid, signal.SIGSTOP)  # it lives, though it stands still
    beside = CliRunner().invoke(main, [*train, "--resume"])  # in this process, which starts quicker
    assert beside.exit_code == 2
    one_line(beside.stderr, str(out), f"process {first.pid} on ", "(since ", "--take-over")
    assert holder(out) == first.pid
    instead = CliRunner().invoke(main, [*train, "--resume", "--take-over", "--max-steps", "1"])
    assert instead.exit_code == 0, instead.stderr
    left = tree(out)
    os.killpg(first.pid, signal.SIGCONT)
    lost = ended(first)
    assert lost.code == 1
    one_line(lost.stderr, str(out), "writes nothing more")
    assert {**tree(out), "status.json": ""} == {**left, "status.json": ""}
    assert holder(out) == 0


def test_slices_run_side_by_side_and_finish_waits_for_none(begin, tmp_path):
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    shard = ("alexnet-prep", "shard", source, out, "--size", 48, "--shard-samples", 1, "--workers", 1)
    slices = [begin(*shard, "--task", f"{number}/3") for number in range(3)]
    own = ".work/task-0-of-3.lock"
    wait_for(lambda: holder(out, own) and any((out / "train").glob("*.tar")))
    os.kill(slices[0].pid, signal.SIGSTOP)
    assert [ended(slices[number]).code for number in (1, 2)] == [0, 0]
    for words in (("alexnet-prep", "finish", out), shard):
        refused = run(*words)
        assert refused.code == 2
        one_line(refused.stderr, f"process {slices[0].pid} on ")
    os.kill(slices[0].pid, signal.SIGKILL)
    os.killpg(slices[0].pid, signal.SIGCONT)  # its workers end with it
    ended(slices[0])
    done = run(*shard)  # the lock of a killed slice is none
    assert (done.code, done.stderr) == (0, "")
    assert not (out / ".work").exists()
