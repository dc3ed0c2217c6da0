"""Placement: the choice of the device, and the number of threads."""

import pytest

from pipeline import Placement, UsageError, choose_device
from pipeline.host import usable_cores


@pytest.mark.parametrize(
    ("cores", "capability", "device"),
    [
        (64, None, "cpu"),
        (2, (7, 5), "gpu"),  # too few cores to decode on the CPU
        (16, (8, 6), "hybrid"),  # no JPEG engine, and enough cores
        (16, (8, 0), "gpu"),  # A100
    ],
)
def test_the_device_follows_cores_and_gpu(cores, capability, device):
    assert choose_device(cores, capability) == device


def test_threads_are_a_share_of_the_cores_or_as_asked():
    assert Placement().thread_count == usable_cores()
    assert Placement(local_world_size=1000).thread_count == 1
    assert Placement(threads=3, local_world_size=1000).thread_count == 3


@pytest.mark.parametrize(("device", "number"), [("cpu", None), ("hybrid", 3), ("gpu", 3)])
def test_only_a_gpu_has_a_number(device, number):
    assert Placement(local_rank=3, device=device).device_id == number


@pytest.mark.parametrize("rank", [2, -1])
def test_a_rank_beyond_the_world_is_refused(rank):
    with pytest.raises(UsageError, match="ranks go from 0 to 1"):
        Placement(rank, 2)
