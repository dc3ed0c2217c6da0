"""Rendezvous and addresses of hosts; CPU processes keep freed memory."""

import platform
import resource
import socket
import subprocess
import sys

import pytest
import torch

from pipeline.errors import UsageError
from trainer.distributed.env import Processes
from trainer.distributed.launch import (
    address_towards,
    interface_of,
    is_this_host,
    launch,
    parse_rendezvous,
    refuse_port_in_use,
)


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


@pytest.mark.parametrize(
    ("text", "expected"), [("localhost:5000", ("localhost", 5000)), ("127.0.0.1", ("127.0.0.1", 29400))]
)
def test_a_rendezvous_is_host_and_port(text, expected):
    assert parse_rendezvous(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":5000", "localhost:", "localhost:port", "localhost:70000", "localhost:0"]
)
def test_another_form_is_refused(text):
    with pytest.raises(UsageError, match="give HOST:PORT, such as node1:29400"):
        parse_rendezvous(text)


def test_an_unknown_host_is_refused(monkeypatch):
    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UsageError, match="host 'nod1' is not known here"):
        parse_rendezvous("nod1:29400")


def test_loopback_is_here_and_a_documentation_address_is_not():
    assert is_this_host("127.0.0.1")
    assert is_this_host("localhost")
    assert not is_this_host("192.0.2.1")


def test_a_port_in_use_is_refused():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"localhost:{port}: the port is in use by another program"):
            refuse_port_in_use("localhost", port)
    refuse_port_in_use("localhost", port)


def test_the_way_to_loopback_is_loopback():
    assert address_towards("127.0.0.1", 9) == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


if __name__ == "__main__":
    print_faults(sys.argv[1])
