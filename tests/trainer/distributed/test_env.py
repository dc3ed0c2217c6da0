"""Processes: their choice, device and rank, also under Slurm, and the interface towards another host."""

import os
import socket
from dataclasses import asdict, replace

import pytest
import torch
from helpers.folders import refused

from pipeline.errors import UsageError
from trainer.distributed.env import (
    DistEnv,
    adopt_slurm,
    all_sum,
    choose_processes,
    gather_objects,
    interface_towards,
    launch_variables,
    launched_outside,
    read_dist_env,
)


@pytest.mark.parametrize(
    ("gpus", "cpus", "found", "expected", "words"),
    [
        (None, None, 0, ("cpu", 1), "no GPU found"),
        (None, None, 1, ("gpu", 1), "all 1 visible GPU"),
        (None, None, 4, ("gpu", 4), "all 4 visible GPUs"),
        (None, 1, 0, ("cpu", 1), "1 CPU process "),
        (None, 3, 4, ("cpu", 3), "3 CPU processes (--cpus)"),
        (1, None, 1, ("gpu", 1), "1 GPU "),
        (2, None, 4, ("gpu", 2), "2 GPUs (--gpus)"),
    ],
)
def test_flags_and_machine_decide_the_processes(monkeypatch, gpus, cpus, found, expected, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    processes = choose_processes(gpus, cpus)
    assert (processes.kind, processes.count) == expected
    assert words in processes.reason


@pytest.mark.parametrize(
    ("gpus", "cpus", "found", "words"),
    [
        (1, 1, 4, "--gpus and --cpus"),
        (-1, None, 0, "--gpus -1: give at least 1"),
        (None, 0, 0, "--cpus 0: give at least 1"),
        (1, None, 0, "shows 0 GPUs; use --cpus 1 to train on the CPU$"),
        (2, None, 1, "shows 1 GPU; use --cpus 2.*or --gpus 1"),
    ],
)
def test_impossible_flags_are_refused_with_a_remedy(monkeypatch, gpus, cpus, found, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(UsageError, match=words):
        choose_processes(gpus, cpus)


def test_the_environment_chooses_device_and_loader_placement():
    env = DistEnv(rank=5, world_size=8, local_rank=1, local_world_size=4, kind="gpu")
    assert env.device == torch.device("cuda:1")
    assert not env.is_first
    placement = {"rank": 5, "world_size": 8, "local_world_size": 4}
    assert asdict(env.placement).items() >= placement.items()
    assert replace(env, cores=3).placement.thread_count == 3
    assert DistEnv().device == torch.device("cpu")
    assert DistEnv().is_first


def test_collectives_of_one_process_are_the_identity():
    assert all_sum(torch.tensor([2.0])).item() == 2.0
    assert gather_objects("a", DistEnv()) == ["a"]


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


def adopted(monkeypatch, variables):
    """Return the variables that `adopt_slurm` adds to these."""
    monkeypatch.setattr(os, "environ", dict(variables))
    adopt_slurm()
    return {name: value for name, value in os.environ.items() if variables.get(name) != value}


def test_a_task_of_a_step_gets_its_rank(monkeypatch):
    found = {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu09",
        "MASTER_PORT": str(12_000 + 4713),
    }
    assert adopted(monkeypatch, STEP) == found
    by_the_user = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5000", "SLURM_STEP_NODELIST": ""}
    assert adopted(monkeypatch, STEP | by_the_user) == {
        n: v for n, v in found.items() if n not in by_the_user
    }


ALONE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "5000"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "1"}, "not WORLD_SIZE, MASTER_ADDR, MASTER_PORT; unset"),
        ({"WORLD_SIZE": "2"}, "but not RANK, "),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "not MASTER_ADDR, MASTER_PORT"),
        (ALONE | {"RANK": "2"}, "RANK=2, WORLD_SIZE=2: ranks go"),
        (ALONE | {"RANK": "first"}, "RANK=first: not a number"),
        (ALONE | {"LOCAL_RANK": "4", "LOCAL_WORLD_SIZE": "4"}, "LOCAL_RANK=4, LOCAL_WORLD_SIZE=4"),
        (
            {n: v for n, v in STEP.items() if n != "SLURM_STEP_TASKS_PER_NODE"},
            "not SLURM_STEP_TASKS_PER_NODE",
        ),
        ({n: v for n, v in STEP.items() if n != "SLURM_STEP_NUM_TASKS"}, "not SLURM_STEP_NUM_TASKS"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "not SLURM_PROCID"),
    ],
)
def test_half_of_a_launchers_variables_are_refused_with_what_is_missing(monkeypatch, variables, words):
    monkeypatch.setattr(os, "environ", dict(variables))

    def start():
        adopt_slurm()
        if launched_outside():
            read_dist_env("cpu")

    refused(start, words)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (ALONE, "RANK=0, WORLD_SIZE=2"),
        (STEP, "SLURM_PROCID=5, SLURM_STEP_NUM_TASKS=7"),
        (STEP | ALONE, "RANK=0, WORLD_SIZE=2"),  # torchrun's, inside a step
    ],
)
def test_what_says_that_there_are_several_processes_is_named(monkeypatch, variables, words):
    monkeypatch.setattr(os, "environ", dict(variables))
    adopt_slurm()
    assert launch_variables().startswith(words)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script, not a step
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"RANK": "3", "WORLD_SIZE": "4"},  # torchrun inside a step
    ],
)
def test_nothing_is_set_outside_a_step_of_several_tasks(monkeypatch, variables):
    assert adopted(monkeypatch, variables) == {}


@pytest.mark.parametrize(
    ("text", "tasks"), [("8", ["8"]), ("4(x2),3", ["4", "4", "3"]), ("1,16(x3)", ["1", "16", "16", "16"])]
)
def test_the_number_of_tasks_is_that_of_the_node(monkeypatch, text, tasks):
    for node, count in enumerate(tasks):
        step = STEP | {"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": str(node)}
        assert adopted(monkeypatch, step)["LOCAL_WORLD_SIZE"] == count


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("a,b,c", "a"),
        ("gpu[01-03,7],login", "gpu01"),
        ("r[1-2]n[08-10].cluster", "r1n08.cluster"),
        ("a[1,3]-ib,b2", "a1-ib"),
    ],
)
def test_the_first_of_slurms_hosts_is_where_all_meet(monkeypatch, hosts, first):
    assert adopted(monkeypatch, STEP | {"SLURM_STEP_NODELIST": hosts})["MASTER_ADDR"] == first


@pytest.mark.parametrize("hosts", ["", "gpu[01-", "(null)"])
def test_unknown_hosts_are_refused_with_what_to_set(monkeypatch, hosts):
    with pytest.raises(UsageError, match="set MASTER_ADDR"):
        adopted(monkeypatch, STEP | {"SLURM_STEP_NODELIST": hosts})


def test_the_interface_is_the_one_with_the_address_of_the_route(monkeypatch):
    assert interface_towards("127.0.0.1") is None  # of no use towards other hosts
    monkeypatch.setattr(socket.socket, "getsockname", lambda _: ("10.1.1.1", 9))
    assert interface_towards("127.0.0.1") is None
    monkeypatch.setattr(socket, "inet_ntoa", {b"\x7f\0\0\x01": "10.1.1.1"}.get)  # as if loopback's
    assert interface_towards("127.0.0.1") == "lo"


@pytest.mark.parametrize(
    "error", [socket.gaierror(-2, "Name or service not known"), OSError(101, "no route")]
)
def test_a_first_host_that_cannot_be_reached_is_refused(monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UsageError, match=f"MASTER_ADDR nod1: .*{error.strerror}"):
        interface_towards("nod1")
