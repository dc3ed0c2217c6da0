"""Two hosts on one machine: network namespaces with a cable between them. Needs root and iproute2."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.training_runs import COMMAND, assert_same_run, command, finish, start

from trainer.runs import checkpoint, metrics_file

ADDRESSES = ("10.77.0.1", "10.77.0.2")
RENDEZVOUS = f"{ADDRESSES[0]}:29400"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Names of two network namespaces that reach each other and nothing else."""
    names = [f"alexnet-{os.getpid()}-{n}" for n in range(2)]
    ends = [f"ax{os.getpid() % 10**7}{n}" for n in range(2)]
    if len(os.sched_getaffinity(0)) < 2 or shutil.which("ip") is None:
        pytest.skip("needs two cores, and `ip` (Debian's iproute2) to make network namespaces with")
    try:
        for name in names:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            ends[0],
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            ends[1],
            "netns",
            names[1],
        )
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


def on(name: str, arguments: list[str]) -> subprocess.Popen[str]:
    core = name[-1]  # each host gets one core
    return start(arguments, ("ip", "netns", "exec", name, "taskset", "-c", core, *COMMAND))


def kill(process: subprocess.Popen[str]) -> str:
    """Kill all processes of a host at once, as a power cut would."""
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    return output


def both(data: Path, out: Path, *more: str, **settings: object) -> list[str]:
    hosts = ("--cpus", "1", "--nodes", "2", "--rendezvous", RENDEZVOUS, "--join-timeout", "120")
    return command(data, out, *hosts, *more, **settings)


@pytest.mark.slow
def test_two_hosts_train_as_two_processes_of_one(namespaces, tiny_dataset, tmp_path):
    processes = [on(name, both(tiny_dataset.root, tmp_path / "two", epochs=3)) for name in namespaces]
    outputs = [finish(process) for process in processes]
    finish(start(command(tiny_dataset.root, tmp_path / "one", "--cpus", "2", epochs=3)))
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert sorted("    3/3 " in output for output in outputs) == [False, True]  # only rank 0 reports


@pytest.mark.slow
def test_a_host_lost_and_back_changes_nothing(namespaces, tiny_dataset, tmp_path):
    """The second host is killed; once its command runs again, both resume from the last checkpoint."""
    settings = {"epochs": 60, "batch_size": 10}
    out = tmp_path / "two"
    arguments = both(tiny_dataset.root, out, "--max-restarts", "3", "--checkpoint-steps", "1", **settings)
    first, second = (on(name, arguments) for name in namespaces)
    while not checkpoint.steps_of(out) and first.poll() is None:
        time.sleep(0.05)
    kill(second)
    at = checkpoint.load(out / "last.pt")["progress"]["steps"]
    assert at < 540
    second = on(namespaces[1], arguments)
    output = finish(first) + finish(second)
    assert "Traceback" not in output
    assert [row.epoch for row in metrics_file.read_metrics(out)] == list(range(1, 61))
    finish(start(command(tiny_dataset.root, tmp_path / "one", "--cpus", "2", **settings)))
    assert_same_run(tmp_path / "one", out)


@pytest.mark.slow
def test_a_host_that_is_asked_to_stop_stops_both(namespaces, tiny_dataset, tmp_path):
    arguments = both(tiny_dataset.root, tmp_path / "two", epochs=500, batch_size=10)
    processes = [on(name, arguments) for name in namespaces]
    while not (tmp_path / "two" / "last.pt").exists() and processes[0].poll() is None:
        time.sleep(0.05)
    os.killpg(processes[1].pid, signal.SIGUSR1)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    assert "stopped by" in "".join(outputs)


@pytest.mark.slow
def test_hosts_that_cannot_reach_each_other_say_so(namespaces, tiny_dataset, tmp_path):
    arguments = both(tiny_dataset.root, tmp_path / "two", epochs=1)
    arguments[arguments.index("--join-timeout") + 1] = "5"
    process = on(namespaces[1], arguments)  # the first host, which has the rendezvous, never starts
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"error: --rendezvous {RENDEZVOUS}: 2 hosts did not meet there within 5 s" in output
    assert "Traceback" not in output
