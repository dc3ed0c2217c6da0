"""Launched processes: results, errors, restarts, memory; two over gloo train as one does."""

import errno
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
from helpers import processes
from helpers.entries import train_on_slices

from pipeline.errors import RunError, UsageError
from pipeline.host import usable_cores
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch
from trainer.recipe import Recipe

pytestmark = pytest.mark.usefixtures("quick_workers")

ONE, TWO = (Processes("cpu", count, "for the test") for count in (1, 2))


def test_a_single_process_is_not_spawned():
    env, arguments, total, ranks = launch(ONE, processes.describe, os.getpid(), "b")
    assert (env, arguments, total, ranks) == (DistEnv(), (os.getpid(), "b"), 1.0, [0])
    with pytest.raises(RunError, match=r"^the disk is full$"):
        launch(ONE, processes.fail, 0)


def test_two_processes_know_each_other_and_rank_0_returns():
    env, arguments, total, ranks = launch(TWO, processes.describe, 7, "b")
    share = max(1, usable_cores() // 2)
    assert env == DistEnv(0, 2, local_rank=0, local_world_size=2, kind="cpu", cores=share)
    assert (arguments, total, ranks) == ((7, "b"), 3.0, [0, 1])


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        (processes.fail, RunError, r"^the disk is full$"),  # not its echo in the other process
        (processes.stumble, RuntimeError, r"process 1 failed:[\s\S]*in stumble[\s\S]*KeyError: 'a bug'"),
        (processes.die, RunError, r"process 1 was killed by signal 9.*--resume"),
    ],
)
def test_the_error_of_the_process_that_failed_arrives(entry, kind, message):
    with pytest.raises(kind, match=message):
        launch(TWO, entry, 1)


def test_a_lost_process_is_started_again_with_all():
    assert launch(TWO, processes.die, 1, max_restarts=2) == 1  # in process 0


def test_a_usage_error_is_not_retried(tmp_path):
    with pytest.raises(UsageError, match=r"^recipe: of another kind: not usable$"):
        launch(TWO, processes.refuse, tmp_path, max_restarts=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "1-0"]


LARS = {"optimizer": "lars", "lr": 0.1, "trust_coefficient": 0.05, "bias_lr_factor": 0.02}


def test_without_a_writable_dev_shm_the_folder_and_the_remedy_are_named(monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    with pytest.raises(RunError, match=r"^/dev/shm: Read-only file system; .*--cpus 1"):
        launch(TWO, processes.describe)


def test_two_processes_train_as_one_does(tiny_dataset):
    """Steps in float64 on the same global batches; the single process does not split its batch."""
    paper, lars = (
        Recipe(name="t", arch="alexnet", epochs=1, width=0.1, crop=64, batch_size=30, seed=1, **changes)
        for changes in ({"optimizer": "paper", "lr": 0.003}, LARS | {"decay_biases": False})
    )
    split = [paper, replace(paper, accumulation_steps=3), replace(lars, accumulation_steps=5)]
    of_paper, of_lars = launch(ONE, train_on_slices, [paper, lars], tiny_dataset.root, 20)
    of_two = launch(TWO, train_on_slices, split, tiny_dataset.root, 20)
    for (losses, weights, _), (losses_of_two, weights_of_two, ranks_agree) in zip(
        (of_paper, of_paper, of_lars), of_two, strict=True
    ):
        assert ranks_agree
        # A network that does not learn would pass with any rule: its gradients vanish.
        assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
        assert losses_of_two == pytest.approx(losses, rel=1e-9)
        for name, weight in weights.items():
            assert (weights_of_two[name] - weight).norm() <= 1e-9 * weight.norm(), name


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_processes_on_the_cpu_keep_their_memory():
    # The test process may have changed its malloc options already, so a single process is forked too.
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        of_one = pool.submit(launch, ONE, processes.page_faults).result()
    fewest_with_huge_pages = 10 * (64 << 20) // (2 << 20)
    assert of_one < fewest_with_huge_pages // 4
    assert launch(TWO, processes.page_faults) < fewest_with_huge_pages // 4
