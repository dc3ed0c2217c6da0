"""srun's variables in torch's words."""

import pytest

from trainer.distributed.env import adopt_slurm, hosts_of, tasks_of_nodes

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


def test_a_task_of_a_step_learns_its_place():
    assert adopt_slurm(STEP) == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu09",
        "MASTER_PORT": str(12_000 + 4713),
    }


def test_what_the_user_says_of_the_meeting_place_stays():
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
def test_nothing_is_made_of_less_than_a_step_of_several(environment):
    assert adopt_slurm(environment) == {}


def test_it_is_set_for_torch_to_read(monkeypatch):
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
