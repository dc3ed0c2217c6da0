"""CPU processes keep freed memory: few page faults once malloc has settled."""

import platform
import resource
import subprocess
import sys

import pytest
import torch

from trainer.distributed.env import Processes
from trainer.distributed.launch import launch


def page_faults(env):
    """Count page faults while ten tensors of 64 MB are made and freed, after malloc has settled."""
    for _ in range(20):
        torch.ones(16, 1024, 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16, 1024, 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def print_faults(processes: str) -> None:
    print(launch(Processes("cpu", int(processes), ""), page_faults))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_on_the_cpu_keep_their_memory(processes):
    # In a process of its own: the test process may have changed its malloc options already.
    done = subprocess.run(
        [sys.executable, __file__, str(processes)], capture_output=True, text=True, check=True
    )
    fewest_with_huge_pages = 10 * (64 << 20) // (2 << 20)
    assert int(done.stdout) < fewest_with_huge_pages // 4


if __name__ == "__main__":
    print_faults(sys.argv[1])
