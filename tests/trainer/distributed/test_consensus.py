"""Processes that decide together, and signals that wait to be looked at."""

import os
import signal
import threading

import pytest
from helpers.entries import wish

from trainer.distributed.consensus import Consensus, StopSignals
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch


def test_alone_a_wish_is_granted_at_once():
    consensus = Consensus(DistEnv())
    assert consensus(False, True) == [False, True]
    assert consensus.now(True) == [True]
    consensus.finish()


def test_all_processes_learn_of_a_wish_in_the_same_call():
    """Rank 1 wishes the second thing at call 3, rank 2 the first at call 5."""
    everywhere = launch(Processes("cpu", 3, ""), wish, {1: (3, 1), 2: (5, 0)}, 8)
    quiet = [False, False]
    expected = [quiet] * 3 + [[False, True]] + [quiet] + [[True, False]] + [quiet] * 2
    assert everywhere == [expected] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_ends_nothing(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.name == ""
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.name == number.name
    assert signal.getsignal(number) == before


def test_a_thread_other_than_the_first_can_train_but_hears_no_signals():
    found = []

    def work():
        with StopSignals() as signals:
            found.append(signals.name)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [""]
