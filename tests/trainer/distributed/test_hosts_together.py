"""Two hosts on one machine: network namespaces with a cable between them. Needs root and iproute2."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from helpers.entries import run_job
from helpers.training_runs import COMMAND, assert_same_run, command, finish, job_of, start

from trainer.distributed.env import Processes
from trainer.distributed.launch import launch

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Names of two network namespaces that reach each other and nothing else."""
    names = [f"alexnet-{os.getpid()}-{n}" for n in range(2)]
    ends = [f"ax{os.getpid() % 10**7}{n}" for n in range(2)]
    if len(os.sched_getaffinity(0)) < 2 or shutil.which("ip") is None:
        pytest.skip("needs two cores, and `ip` (Debian's iproute2) to make network namespaces with")
    cable = ["link", "add", ends[0], "netns", names[0], "type", "veth"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip(*cable, "peer", "name", ends[1], "netns", names[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    else:
        yield names
    finally:
        for name in names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=False)
            for process in found.stdout.split():  # left by a test that failed
                os.kill(int(process), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def torchrun(host: int, namespace: str, arguments: list[str]) -> subprocess.Popen[str]:
    """Start one host of two, with one process on one core."""
    # This machine's name is the loopback's: torchrun has to be told where the hosts meet and which it is.
    options = {
        "nnodes": 2,
        "nproc-per-node": 1,
        "rdzv-backend": "c10d",
        "rdzv-endpoint": f"{ADDRESSES[0]}:29400",
        "rdzv-conf": f"is_host={int(host == 0)}",
        "local-addr": ADDRESSES[host],
    }
    launcher = (sys.executable, "-m", "torch.distributed.run", *(f"--{k}={v}" for k, v in options.items()))
    inside = ("ip", "netns", "exec", namespace, "taskset", "-c", str(host))
    return start(arguments, (*inside, *launcher, "--no-python", *COMMAND))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_two_hosts_train_as_two_processes_of_one(namespaces, tiny_dataset, tmp_path):
    arguments = command(tiny_dataset.root, tmp_path / "two", epochs=3)
    hosts = [torchrun(host, namespace, arguments) for host, namespace in enumerate(namespaces)]
    outputs = [finish(process) for process in hosts]
    assert sorted("    3/3 " in output for output in outputs) == [False, True]  # only rank 0 reports
    one = job_of(tiny_dataset.root, tmp_path / "one", epochs=3)
    launch(Processes("cpu", 2, ""), run_job, one)
    assert_same_run(tmp_path / "one", tmp_path / "two")
