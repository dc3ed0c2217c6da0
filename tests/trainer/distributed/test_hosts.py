"""Rendezvous addresses, ports and network interfaces of this host."""

import socket

import pytest

from pipeline.errors import UsageError
from trainer.distributed import launch


@pytest.mark.parametrize(
    ("text", "expected"), [("localhost:5000", ("localhost", 5000)), ("127.0.0.1", ("127.0.0.1", 29400))]
)
def test_a_rendezvous_is_host_and_port(text, expected):
    assert launch.parse_rendezvous(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":5000", "localhost:", "localhost:port", "localhost:70000", "localhost:0"]
)
def test_another_form_is_refused(text):
    with pytest.raises(UsageError, match="give HOST:PORT, such as node1:29400"):
        launch.parse_rendezvous(text)


def test_an_unknown_host_is_refused(monkeypatch):
    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UsageError, match="host 'nod1' is not known here"):
        launch.parse_rendezvous("nod1:29400")


def test_loopback_is_here_and_a_documentation_address_is_not():
    assert launch.is_this_host("127.0.0.1")
    assert launch.is_this_host("localhost")
    assert not launch.is_this_host("192.0.2.1")


def test_a_port_in_use_is_refused():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"localhost:{port}: the port is in use by another program"):
            launch.refuse_port_in_use("localhost", port)
    launch.refuse_port_in_use("localhost", port)


def test_the_way_to_loopback_is_loopback():
    assert launch.address_towards("127.0.0.1", 9) == "127.0.0.1"
    assert launch.interface_of("127.0.0.1") == "lo"
    assert launch.interface_of("192.0.2.1") is None
