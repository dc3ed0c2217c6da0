"""Placement: the choice of the backend, and the number of threads."""

import pytest

from pipeline import Placement, UsageError, choose_backend
from pipeline.host import usable_cores


@pytest.mark.parametrize(
    ("cores", "capability", "dali", "backend"),
    [
        (64, None, True, "threads"),
        (2, (7, 5), True, "dali"),  # too few cores to decode on the CPU
        (16, (8, 6), True, "threads"),  # no JPEG engine, and enough cores
        (16, (8, 0), True, "dali"),  # A100
        (16, (8, 0), False, "threads"),
    ],
)
def test_the_backend_follows_cores_and_gpu(cores, capability, dali, backend):
    assert choose_backend(cores, capability, dali=dali)[0] == backend


def test_threads_are_a_share_of_the_cores_or_as_asked():
    assert Placement().thread_count == usable_cores()
    assert Placement(local_world_size=1000).thread_count == 1
    assert Placement(threads=3, local_world_size=1000).thread_count == 3


@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (8, 0), (9, 2), (16, 2), (17, 3), (64, 8)])
def test_many_threads_are_divided_among_worker_processes(threads, workers):
    assert Placement(threads=threads).worker_count == workers
    assert Placement(threads=threads, workers=1).worker_count == 1


@pytest.mark.parametrize("rank", [2, -1])
def test_a_rank_beyond_the_world_is_refused(rank):
    with pytest.raises(UsageError, match="ranks go from 0 to 1"):
        Placement(rank, 2)
