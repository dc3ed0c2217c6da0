"""Processes: choice, launch, failures, Slurm; two real processes over gloo train as one does."""

import os
import socket
from dataclasses import replace

import pytest
import torch
from helpers import entries

from pipeline.errors import RunError, UsageError
from trainer.distributed.env import (
    DistEnv,
    Processes,
    adopt_slurm,
    all_sum,
    choose_processes,
    gather_objects,
    hosts_of,
    tasks_of_nodes,
)
from trainer.distributed.launch import Cluster, launch
from trainer.recipe import Recipe

TWO = Processes("cpu", 2, "two for the test")


@pytest.fixture
def show_gpus(monkeypatch):
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("gpus", "cpus", "found", "expected", "words"),
    [
        (None, None, 0, ("cpu", 1), "no GPU found"),
        (None, None, 1, ("gpu", 1), "all 1 visible GPU"),
        (None, None, 4, ("gpu", 4), "all 4 visible GPUs"),
        (None, 1, 0, ("cpu", 1), "1 CPU process "),
        (None, 3, 0, ("cpu", 3), "3 CPU processes"),
        (None, 3, 4, ("cpu", 3), "--cpus"),
        (1, None, 1, ("gpu", 1), "1 GPU "),
        (2, None, 4, ("gpu", 2), "2 GPUs"),
        (4, None, 4, ("gpu", 4), "--gpus"),
    ],
)
def test_flags_and_machine_decide_the_processes(show_gpus, gpus, cpus, found, expected, words):
    show_gpus(found)
    processes = choose_processes(gpus, cpus)
    assert (processes.kind, processes.count) == expected
    assert words in processes.reason


@pytest.mark.parametrize(
    ("gpus", "cpus", "found", "words"),
    [
        (1, 1, 4, "--gpus and --cpus"),
        (0, None, 4, "--gpus 0: give at least 1"),
        (-1, None, 0, "--gpus -1"),
        (None, 0, 0, "--cpus 0: give at least 1"),
        (1, None, 0, "shows 0 GPUs; use --cpus 1 to train on the CPU$"),
        (2, None, 1, "shows 1 GPU; use --cpus 2.*or --gpus 1"),
        (8, None, 4, "shows 4 GPUs; .*or --gpus 4"),
    ],
)
def test_impossible_flags_are_refused_with_a_remedy(show_gpus, gpus, cpus, found, words):
    show_gpus(found)
    with pytest.raises(UsageError, match=words):
        choose_processes(gpus, cpus)


def test_the_environment_chooses_device_and_loader_placement():
    env = DistEnv(rank=5, world_size=8, local_rank=1, local_world_size=4, kind="gpu")
    assert env.device == torch.device("cuda:1")
    assert not env.is_first
    placement = env.placement
    assert (placement.rank, placement.world_size) == (5, 8)
    assert (placement.local_rank, placement.local_world_size) == (1, 4)
    assert placement.device == "gpu"
    assert DistEnv().device == torch.device("cpu")
    assert DistEnv().is_first


def test_collectives_of_one_process_are_the_identity():
    assert all_sum(torch.tensor([2.0])).item() == 2.0
    assert gather_objects("a", DistEnv()) == ["a"]


def test_a_single_process_is_not_spawned():
    env, arguments, total, ranks = launch(Processes("cpu", 1, ""), entries.describe, os.getpid(), "b")
    assert (env, arguments, total, ranks) == (DistEnv(), (os.getpid(), "b"), 1.0, [0])


def test_a_single_process_raises_its_own_error():
    with pytest.raises(RunError, match=r"^the disk is full$"):
        launch(Processes("cpu", 1, ""), entries.fail, 0)


def test_two_processes_know_each_other_and_rank_0_returns():
    env, arguments, total, ranks = launch(TWO, entries.describe, 7, "b")
    assert env == DistEnv(rank=0, world_size=2, local_rank=0, local_world_size=2, kind="cpu")
    assert (arguments, total, ranks) == ((7, "b"), 3.0, [0, 1])


def test_a_workers_error_arrives_with_its_message_and_exit_code():
    with pytest.raises(UsageError) as usage:
        launch(TWO, entries.refuse, 0)
    assert str(usage.value) == "recipe: of another kind: not usable"
    assert usage.value.exit_code == 2


def test_a_workers_failure_is_not_hidden_by_its_echo_in_the_others():
    with pytest.raises(RunError, match=r"^the disk is full$") as failure:
        launch(TWO, entries.fail, 1)
    assert failure.value.exit_code == 1


def test_a_workers_bug_arrives_with_its_stack():
    with pytest.raises(RuntimeError, match=r"process 1 failed:[\s\S]*in stumble[\s\S]*KeyError: 'a bug'"):
        launch(TWO, entries.stumble, 1)


def test_a_killed_worker_is_a_run_error_that_says_so():
    with pytest.raises(RunError, match=r"process 1 was killed by signal 9.*--resume"):
        launch(TWO, entries.die, 1)


def test_a_lost_worker_is_started_again_with_all(tmp_path):
    restarts, tries = launch(TWO, entries.die_once, tmp_path, 1, cluster=Cluster(max_restarts=2))
    assert (restarts, tries) == (1, 4)


def test_a_usage_error_is_not_retried(tmp_path):
    with pytest.raises(UsageError, match=r"^the input is bad$"):
        launch(TWO, entries.refuse_every_time, tmp_path, cluster=Cluster(max_restarts=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "1-0"]


@pytest.mark.parametrize(
    ("nodes", "rendezvous", "words"),
    [(2, "", "--nodes 2 needs --rendezvous HOST:PORT"), (1, "a:1", "--rendezvous a:1 needs --nodes")],
)
def test_several_hosts_need_a_rendezvous(nodes, rendezvous, words):
    with pytest.raises(UsageError, match=words):
        Cluster(nodes, rendezvous)


def test_hosts_that_do_not_meet_are_reported():
    before = dict(os.environ)
    with socket.socket() as free:
        free.bind(("", 0))
        rendezvous = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RunError, match=f"--rendezvous {rendezvous}: 2 hosts did not meet there within 3 s"):
        launch(Processes("cpu", 1, ""), entries.describe, cluster=Cluster(2, rendezvous, join_seconds=3))
    assert dict(os.environ) == before  # the next run's hosts may meet elsewhere


def test_a_rendezvous_port_in_use_is_refused():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        rendezvous = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"--rendezvous {rendezvous}: the port is in use"):
            launch(Processes("cpu", 1, ""), entries.describe, cluster=Cluster(2, rendezvous, join_seconds=3))


@pytest.mark.parametrize(
    ("changes", "learns"),
    [
        ({"optimizer": "paper", "lr": 0.003}, 0.8),
        ({"optimizer": "paper", "lr": 0.003, "accumulation_steps": 3}, 0.8),
        (
            {
                "optimizer": "lars",
                "lr": 0.1,
                "trust_coefficient": 0.05,
                "decay_biases": False,
                "bias_lr_factor": 0.02,
            },
            0.8,
        ),
        (
            {
                "optimizer": "lars",
                "lr": 0.1,
                "trust_coefficient": 0.05,
                "bias_lr_factor": 0.02,
                "accumulation_steps": 5,
            },
            0.8,
        ),
        ({"optimizer": "sgd", "lr": 0.003}, 0.8),
    ],
)
def test_two_processes_train_as_one_does(tiny_dataset, changes, learns):
    """Fifty steps in float64 on the same global batches; the single process does not split its batch."""
    recipe = Recipe(**{"name": "t", "arch": "alexnet", "epochs": 1, "width": 0.1, "crop": 64} | changes)
    whole = replace(recipe, batch_size=30, seed=1, accumulation_steps=1)
    parts = replace(whole, accumulation_steps=recipe.accumulation_steps)
    steps = 50
    losses, weights, _ = launch(
        Processes("cpu", 1, ""), entries.train_on_slices, whole, tiny_dataset.root, steps
    )
    losses_of_two, weights_of_two, ranks_agree = launch(
        TWO, entries.train_on_slices, parts, tiny_dataset.root, steps
    )
    assert ranks_agree
    # A network that does not learn would pass with any rule: its gradients vanish.
    assert sum(losses[-4:]) < learns * sum(losses[:4])
    assert losses_of_two == pytest.approx(losses, rel=1e-9)
    for name, weight in weights.items():
        assert (weights_of_two[name] - weight).norm() <= 1e-9 * weight.norm(), name


STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[09-10]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_task_of_a_step_gets_its_rank():
    assert adopt_slurm(STEP) == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu09",
        "MASTER_PORT": str(12_000 + 4713),
    }


def test_a_master_address_set_by_the_user_stays():
    found = adopt_slurm(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5000"})
    assert "MASTER_ADDR" not in found
    assert "MASTER_PORT" not in found
    assert found["RANK"] == "5"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script, not a step
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"RANK": "3", "WORLD_SIZE": "4"},  # torchrun inside a step
    ],
)
def test_nothing_is_set_outside_a_step_of_several_tasks(environment):
    assert adopt_slurm(environment) == {}


def test_the_variables_are_set_in_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    adopt_slurm()
    import os

    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("5", "7")


@pytest.mark.parametrize(
    ("text", "tasks"), [("8", [8]), ("4(x2),3", [4, 4, 3]), ("1,2(x3)", [1, 2, 2, 2]), ("16(x1)", [16])]
)
def test_tasks_of_nodes(text, tasks):
    assert tasks_of_nodes(text) == tasks


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node7", ["node7"]),
        ("a,b,c", ["a", "b", "c"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("r[1-2]n[08-10]", ["r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10"]),
        ("a[1,3]-ib,b2", ["a1-ib", "a3-ib", "b2"]),
    ],
)
def test_hosts_of(text, hosts):
    assert hosts_of(text) == hosts
