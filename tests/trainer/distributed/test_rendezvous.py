"""Processes that do not come, GPUs that two processes would share, and shares of the CPU cores."""

import os
import socket
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from pipeline.errors import RunError, UsageError
from trainer.distributed import rendezvous
from trainer.distributed.env import read_dist_env
from trainer.distributed.rendezvous import Seat, gpu_id, meet, refuse_shared_gpus


@pytest.fixture
def one_of_two(monkeypatch):
    """Variables of rank 0 of two processes, of which nobody starts the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    monkeypatch.setattr(os, "environ", given)


def test_who_waits_says_for_what_and_not_forever(one_of_two, monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "_LIMIT", timedelta(seconds=2))
    monkeypatch.setattr(rendezvous, "_QUIET_SECONDS", 0.1)
    with pytest.raises(RunError, match=r"RANK=0, WORLD_SIZE=2.*unset these variables"):
        meet(read_dist_env("cpu"))
    assert "waiting for 2 processes to meet at 127.0.0.1:" in capsys.readouterr().err


def test_two_processes_never_share_a_gpu(monkeypatch):
    """Also where each is shown one GPU only: their numbers say nothing then."""
    seats = [
        Seat("a", [0], "GPU-1"),
        Seat("a", [1], "GPU-2"),
        Seat("b", [0], "GPU-3"),
        Seat("b", [0], "GPU-2"),
    ]
    refuse_shared_gpus(seats[:3])
    refuse_shared_gpus([Seat("a", [0], "")] * 2)  # CPU processes
    with pytest.raises(UsageError, match="processes 1 and 3 on b would share one GPU"):
        refuse_shared_gpus(seats)


def test_the_gpu_of_a_process_is_known_by_its_uuid(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"U{device.index}")
    )
    env = rendezvous.DistEnv(rank=3, world_size=4, local_rank=3, local_world_size=4, kind="gpu")
    assert gpu_id(env) == "U0"
    assert gpu_id(rendezvous.DistEnv()) == ""
