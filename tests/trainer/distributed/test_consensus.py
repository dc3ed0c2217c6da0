"""Requests shared between processes, and recorded signals."""

import os
import signal
import socket
import threading

import pytest
import torch.distributed as dist
from helpers.processes import wish

from trainer.distributed import consensus
from trainer.distributed.consensus import Consensus
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch
from trainer.distributed.stop_signals import StopSignals

pytestmark = pytest.mark.usefixtures("quick_workers")


def test_a_single_process_gets_its_requests_at_once():
    alone = Consensus(DistEnv())
    assert alone(False, True) == [False, True]
    assert alone.now(True) == [True]
    alone.finish()


@pytest.mark.parametrize(
    ("step_seconds", "granted"), [({0: 1.0, 1: 0.01}, (6, 4)), ({0: 0.01, 1: 0.04}, (8, 8))]
)
def test_all_processes_see_a_request_in_the_same_call_and_once(step_seconds, granted):
    """Rank 0 makes the first request from call 5 on, rank 1 the second from call 3 on.

    Slow steps exchange each time; of 40 ms, every three: in calls 1, 2, 5, 8, and so on.
    """
    everywhere = launch(Processes("cpu", 2, ""), wish, {0: (5, 0), 1: (3, 1)}, 15, step_seconds)
    expected = [[call == at for at in granted] for call in range(1, 16)]
    assert everywhere == [expected] * 2


@pytest.mark.parametrize(("kind", "hosts", "chosen"), [("gpu", 2, "ib7"), ("gpu", 1, None), ("cpu", 2, None)])
def test_gloo_beside_nccl_uses_the_network_towards_the_other_hosts(monkeypatch, kind, hosts, chosen):
    """Though this host's own name may be the loopback's."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "first")
    monkeypatch.setattr(consensus, "interface_towards", {"second": "ib7"}.get, raising=False)
    monkeypatch.setattr(dist, "all_gather_object", lambda hosts, _: hosts.__setitem__(1, "second"))
    seen = []
    monkeypatch.setattr(dist, "new_group", lambda **_: seen.append(os.environ.get("GLOO_SOCKET_IFNAME")))
    Consensus(DistEnv(world_size=2, local_world_size=2 // hosts, kind=kind))
    assert seen == [chosen]
    os.environ.pop("GLOO_SOCKET_IFNAME", None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_recorded_and_ends_nothing(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.name == ""
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.name == number.name
    assert signal.getsignal(number) == before


def test_a_thread_other_than_the_main_one_can_train_but_receives_no_signals():
    found = []

    def work():
        with StopSignals() as signals:
            found.append(signals.name)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [""]
