"""Requests shared between processes, and recorded signals."""

import os
import signal
import threading

import pytest
from helpers.processes import wish

from trainer.distributed.consensus import Consensus
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch
from trainer.distributed.stop_signals import StopSignals

pytestmark = pytest.mark.usefixtures("quick_workers")


def test_a_single_process_gets_its_requests_at_once():
    consensus = Consensus(DistEnv())
    assert consensus(False, True) == [False, True]
    assert consensus.now(True) == [True]
    consensus.finish()


def test_all_processes_see_a_request_in_the_same_call():
    """Rank 1 makes the second request in call 3, rank 0 the first in call 5."""
    everywhere = launch(Processes("cpu", 2, ""), wish, {1: (3, 1), 0: (5, 0)}, 8)
    quiet = [False, False]
    expected = [quiet] * 3 + [[False, True]] + [quiet] + [[True, False]] + [quiet] * 2
    assert everywhere == [expected] * 2


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
