"""This host's place on the network, where several train together."""

import errno
import fcntl
import socket
import struct

from pipeline.errors import UsageError

DEFAULT_PORT = 29_400
"""Of a rendezvous that names none: torch elastic's own."""

# Linux's ioctl for an interface's IPv4 address, and where it is in the answer.
_SIOCGIFADDR = 0x8915
_ADDRESS = slice(20, 24)


def parse_rendezvous(text: str) -> tuple[str, int]:
    """HOST:PORT, or HOST alone.

    Raises:
        UsageError: no such form, or a host that nobody knows.
    """
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(DEFAULT_PORT))
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--rendezvous {text!r}: give HOST:PORT, such as node1:{DEFAULT_PORT}")
    try:
        socket.getaddrinfo(host, int(port))
    except socket.gaierror as error:
        raise UsageError(
            f"--rendezvous {text}: the host {host!r} is not known here ({error.strerror}); give a name or "
            "address that all hosts can reach"
        ) from error
    return host, int(port)


def is_here(host: str) -> bool:
    """Whether an address or name is this host's."""
    for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind((address[0], 0))
            except OSError:
                continue
            return True
    return False


def refuse_taken_port(host: str, port: int) -> None:
    """Refuse a port of this host that another program listens on.

    Raises:
        UsageError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "taken by another program" if error.errno == errno.EADDRINUSE else "not open to this user"
            raise UsageError(
                f"--rendezvous {host}:{port}: the port is {why}; choose another, the same on every host"
            ) from error


def address_towards(host: str, port: int) -> str:
    """This host's own address on the way to another (nothing is sent)."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        found: str = probe.getsockname()[0]
    return found


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address, None where none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # no IPv4 address
                continue
            if socket.inet_ntoa(answer[_ADDRESS]) == address:
                return name
    return None
