"""Who is blamed when nothing moves, and real processes that hang."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from helpers.entries import hang, unlike

from pipeline.errors import RunError, UsageError
from trainer.distributed.env import Processes, World
from trainer.distributed.failures import Sign, Watch, blame
from trainer.distributed.launch import Cluster, launch


def sign(step=37, doing="training", host="node1"):
    return Sign(host, 1e9, step, doing, 700.0)


def test_the_silent_are_blamed_first():
    signs = {0: sign(), 1: sign(36, "waiting for data"), 2: sign(host="node2")}
    line = blame(0, signs, [2], 600)
    assert line == (
        "process 2 on node2 is silent: last heard of training after update 37, while others have waited for "
        "600 s; see to that host, then continue with --resume"
    )
    assert blame(2, signs, [2], 600) == ""


def test_else_those_behind_are():
    signs = {0: sign(), 1: sign(36, "waiting for data"), 2: sign(36, "waiting for data", "node2")}
    assert blame(0, signs, [], 600).startswith(
        "process 1 on node1, process 2 on node2 are behind: still waiting for data after update 36"
    )
    assert blame(1, signs, [], 600) == ""


def test_of_equals_those_are_that_do_something_else():
    signs = {0: sign(), 1: sign(doing="waiting for data"), 2: sign()}
    assert blame(2, signs, [], 600).startswith("process 1 on node1 is behind: still waiting for data")


def test_nobody_is_blamed_where_all_wait_alike():
    line = blame(0, {0: sign(), 1: sign()}, [], 600)
    assert "no process has moved for 600 s since update 37, and none is behind" in line


def test_a_single_process_has_nobody_to_wait_for():
    with Watch(World(), 1.0) as watch:
        watch.at(1, "training")
        assert not watch._thread.is_alive()


def test_who_asks_is_not_silent_to_others_that_ask(monkeypatch):
    monkeypatch.setattr("trainer.distributed.failures._SILENT_SECONDS", 1.0)
    monkeypatch.setattr("trainer.distributed.failures._EVERY_SECONDS", 0.05)
    said, signs = [], set()
    store = dist.HashStore()
    dead, watch = (Watch(World(rank, 2), 0.0) for rank in (1, 0))
    dead._store = watch._store = store
    dead._publish()  # once, and never again
    watch._publish()
    watch._limit = 0.0
    monkeypatch.setattr(watch, "_end", lambda error: said.append(str(error)))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(watch._give_up)
        while not asked.done():
            signs.add(watch._read()[0])
            time.sleep(0.01)
    assert len(signs) > 3
    assert len(said) == 1
    assert said[0].startswith("process 1 on ")
    assert " is silent: " in said[0]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        pytest.param(
            "stop",
            r"process 1 on .* is silent: last heard of training after update 3, while others have waited",
            marks=pytest.mark.slow,  # the launcher gives the stopped one 30 s to end
        ),
        ("sleep", r"process 1 on .* is behind: still waiting for data after update 3, while others"),
    ],
)
def test_a_hanging_process_is_named_and_the_run_ended(how, words):
    with pytest.raises(RunError, match=words):
        launch(Processes("cpu", 3, ""), hang, 1, how)


@pytest.mark.slow
def test_a_first_process_that_hangs_is_named():
    with pytest.raises(RunError, match=r"process 0 .*is silent"):
        launch(Processes("cpu", 2, ""), hang, 0, "stop")


@pytest.mark.slow
def test_a_first_process_that_hangs_with_the_others_store_is_started_again_with_all():
    assert launch(Processes("cpu", 2, ""), hang, 0, "stop", cluster=Cluster(max_restarts=1)) == 1


def test_unlike_processes_are_refused_with_what_differs():
    with pytest.raises(UsageError, match=r"process 1 on .* has torch 2\.12, process 0 2\.13: all hosts need"):
        launch(Processes("cpu", 2, ""), unlike)
