"""Errors shared between processes, and the watchdog's reports, also of real processes that hang."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from helpers.processes import fail_together, hang, unlike
from torch.multiprocessing.spawn import ProcessContext

from pipeline.errors import RunError, ToolkitError, UsageError
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.failures import (
    HangWatchdog,
    LostPeerError,
    Sign,
    announce_failure,
    describe_hang,
    error_from_text,
    error_to_text,
    raise_together,
)
from trainer.distributed.launch import launch

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.mark.parametrize("error", [UsageError("a: b"), RunError("x"), LostPeerError("gone")])
def test_an_error_outlives_its_text(error):
    again = error_from_text(error_to_text(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert error_from_text("ValueError: 3") is error_from_text("nothing") is None


def test_a_single_process_announces_to_nobody_and_raises_its_own_error():
    announce_failure(RunError("x"), DistEnv())
    done = []
    raise_together(lambda: done.append(1), DistEnv())
    assert done == [1]

    def fail():
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        raise_together(fail, DistEnv())


def test_what_fails_in_one_process_is_raised_in_all(tmp_path):
    with pytest.raises(ToolkitError, match="process 1 cannot"):
        launch(Processes("cpu", 2, ""), fail_together, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["UsageError: process 1 cannot"] * 2


def sign(step=37, doing="training", host="node1"):
    return Sign(host, 1e9, step, doing)


@pytest.mark.parametrize(
    ("signs", "silent", "line", "named"),
    [
        (
            [sign(), sign(36, "waiting for data"), sign(host="node2")],
            [2],
            "process 2 on node2 is silent: last seen training after update 37, while others have waited for "
            "600 s; check that host, then continue with --resume",
            [2],
        ),
        (
            [sign(), sign(36, "waiting for data"), sign(36, "waiting for data", "node2")],
            [],
            "process 1 on node1, process 2 on node2 are behind: still waiting for data after update 36",
            [1, 2],
        ),
        # Of equal steps those that wait for no other.
        (
            [sign(), sign(doing="waiting for data"), sign()],
            [],
            "process 1 on node1 is behind: still waiting for data",
            [1],
        ),
        (
            [sign(), sign()],
            [],
            "no process has made progress for 600 s since update 37, and none is behind: all are training",
            [],
        ),
        # Neither waits for the other.
        (
            [sign(doing="saving"), sign(doing="waiting for data")],
            [],
            "no process has made progress for 600 s since update 37, and none is behind: all are saving or",
            [],
        ),
    ],
)
def test_silent_processes_are_named_first_then_those_behind(signs, silent, line, named):
    signs = dict(enumerate(signs))
    assert describe_hang(0, signs, silent, 600).startswith(line)
    assert {describe_hang(rank, signs, silent, 600) for rank in named} <= {""}  # they name no one


def test_a_single_process_has_nobody_to_wait_for():
    with HangWatchdog(DistEnv(), 1.0) as watch:
        watch.at(1, "training")
        assert not watch._thread.is_alive()


def test_a_process_that_checks_the_others_still_publishes_its_own_state(monkeypatch):
    monkeypatch.setattr("trainer.distributed.failures._SILENT_SECONDS", 1.0)
    monkeypatch.setattr("trainer.distributed.failures._EVERY_SECONDS", 0.05)
    lines, signs = [], set()
    store = dist.HashStore()
    dead, watch = (HangWatchdog(DistEnv(rank, 2), 0.0) for rank in (1, 0))
    dead._store = watch._store = store
    dead._publish()  # once, and never again
    watch._publish()
    watch._limit = 0.0
    monkeypatch.setattr(watch, "_end", lambda error: lines.append(str(error)))
    with ThreadPoolExecutor(1) as pool:
        check = pool.submit(watch._give_up)
        while not check.done():
            signs.add(watch._read()[0])
            time.sleep(0.01)
    assert len(signs) > 3
    assert len(lines) == 1
    assert lines[0].startswith("process 1 on ")
    assert " is silent: " in lines[0]


def test_a_process_that_is_behind_is_named_and_the_run_ended():
    behind = r"process 1 on .* is behind: still waiting for data after update 3, while others have waited"
    with pytest.raises(RunError, match=behind):
        launch(Processes("cpu", 2, ""), hang, 1, "sleep")


@pytest.fixture
def hasty(monkeypatch):
    """Let the launcher wait for two seconds, and not for 30, before it kills a process that does not end."""
    join = ProcessContext._join_procs_with_timeout
    monkeypatch.setattr(ProcessContext, "_join_procs_with_timeout", lambda self, _: join(self, 2))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_named_and_the_run_ended(hasty, rank):
    silent = rf"process {rank} on .* is silent: last seen training after update 3, while others have waited"
    with pytest.raises(RunError, match=silent):
        launch(Processes("cpu", 2, ""), hang, rank, "stop")


@pytest.mark.slow
def test_a_first_process_that_hangs_with_the_others_store_is_started_again_with_all(hasty):
    assert launch(Processes("cpu", 2, ""), hang, 0, "stop", max_restarts=1) == 1


def test_unlike_processes_are_refused_with_what_differs():
    with pytest.raises(UsageError, match=r"process 1 on .* has torch 2\.12, process 0 2\.13: all hosts need"):
        launch(Processes("cpu", 2, ""), unlike)
