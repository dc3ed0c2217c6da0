"""Launch processes with torch elastic, on this host or together with other hosts."""

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import socket
import struct
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.errors import RunError, ToolkitError, UsageError
from pipeline.host import keep_freed_memory, usable_cores
from trainer.distributed.env import DistEnv, Kind, Processes, launched_outside, read_dist_env
from trainer.distributed.failures import (
    FAILURE_FILE,
    LostPeerError,
    announce_failure,
    error_from_text,
    error_to_text,
    record_failure,
    recorded_failure,
)

T = TypeVar("T")

# When one process fails, collectives fail in the others with one of these texts. Such a secondary error is
# held back until the launcher, which polls every 0.2 s, has seen the first failure and ends all processes.
_LOST_PEER = ("closed by peer", "reset by peer", "Broken pipe", "remote process", "Socket Timeout")
_ECHO_SECONDS = 6.0
# Longer than the watchdog waits for a silent process, and than the checksums of all shards take.
_COLLECTIVE_TIMEOUT = timedelta(hours=6)
# A SIGTERM that comes later than this after the first signal ends all processes at once.
_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Cluster:
    """Hosts that train together, and how often lost processes are restarted.

    Attributes:
        nodes: Number of hosts, which all run the same command.
        rendezvous: HOST:PORT of the host where all meet; required for more than one host, else "".
        join_seconds: Seconds that each host waits for the others, at the start and after a loss.
        max_restarts: How often all processes are restarted after some were lost.

    Raises:
        UsageError: Several hosts without a rendezvous, or a rendezvous without several hosts.
    """

    nodes: int = 1
    rendezvous: str = ""
    join_seconds: int = 600
    max_restarts: int = 0

    def __post_init__(self) -> None:
        if self.nodes > 1 and not self.rendezvous:
            raise UsageError(f"--nodes {self.nodes} needs --rendezvous HOST:PORT, the same on every host")
        if self.rendezvous and self.nodes == 1:
            raise UsageError(f"--rendezvous {self.rendezvous} needs --nodes with the number of hosts")


def launch(
    processes: Processes, entry: Callable[..., T], *args: Any, cluster: Cluster | None = None
) -> T | None:
    """Run `entry(env, *args)` in every process and return the result of the first process on this host.

    A single process without restarts runs `entry` itself; otherwise torch's elastic launcher spawns workers.
    Under torchrun or srun this process is already a worker: it runs `entry` and returns its own result.
    SIGTERM and SIGUSR1 are forwarded to the workers, which may take their time to end.

    Args:
        processes: Kind and number of processes on this host.
        entry: Picklable function that gets the process's `DistEnv` first.
        args: Further picklable arguments of `entry`.
        cluster: Hosts and restarts; by default one host and no restart.

    Raises:
        ToolkitError: An error that a worker raised, with its message and exit code.
        RunError: A worker was killed, this process got a signal to end, or the other hosts did not join.
        RuntimeError: Any other exception of a worker, with its traceback.
        KeyboardInterrupt: Ctrl-C, as in a single process.
    """
    together = cluster or Cluster()
    if launched_outside():
        return _worker(entry, processes.kind, args)
    if processes.count == together.nodes == 1 and not together.max_restarts:
        if processes.kind == "cpu":
            keep_freed_memory()
        return entry(DistEnv(kind=processes.kind), *args)
    _silence("torch.distributed.elastic", "torch.multiprocessing")  # failures are raised below
    with (
        _environment_kept(),
        tempfile.TemporaryDirectory(prefix="alexnet-") as folder,
        _Relay(Path(folder)) as relay,
    ):
        os.environ[FAILURE_FILE] = str(relay.failure_file)
        # A shared store would still hold the addresses of lost processes after a restart (torch 2.13).
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1" if together.max_restarts else "0"
        config = _config(processes, together, folder)
        try:
            results: dict[int, T] = elastic_launch(config, _spawned_worker)(entry, processes.kind, args)
        except ChildFailedError as error:
            raise relay.explained(_as_toolkit_error(error)) from None
        except SignalException as error:  # the launcher has ended the workers
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise _stopped_by(error.sigval.name) from None
        except (RendezvousError, dist.DistError, RuntimeError, ConnectionError) as error:
            if together.nodes == 1:
                raise
            raise _no_meeting(together, error) from error
    return results[min(results)]


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Restore the environment variables on exit: the next run's hosts may meet elsewhere."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _config(processes: Processes, cluster: Cluster, folder: str) -> LaunchConfig:
    common: dict[str, Any] = {
        "min_nodes": cluster.nodes,
        "max_nodes": cluster.nodes,
        "nproc_per_node": processes.count,
        "rdzv_backend": "c10d",
        "max_restarts": cluster.max_restarts,
        "monitor_interval": 0.2,
        "start_method": "spawn",
        "logs_specs": DefaultLogsSpecs(log_dir=folder),
        "signals_to_handle": "SIGINT,SIGHUP,SIGQUIT",  # _Relay forwards SIGTERM and SIGUSR1
        "shutdown_timeout": 5,
    }
    if cluster.nodes == 1:
        return LaunchConfig(run_id=uuid.uuid4().hex, rdzv_endpoint="localhost:0", **common)
    host, port = parse_rendezvous(cluster.rendezvous)
    here = is_this_host(host)
    if here:
        refuse_port_in_use(host, port)
    address = address_towards(host, port)
    if interface := interface_of(address):
        # By default gloo uses the interface that this host's name resolves to, often the loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return LaunchConfig(
        run_id="alexnet-train",
        rdzv_endpoint=f"{host}:{port}",
        rdzv_configs={
            "is_host": here,
            "join_timeout": cluster.join_seconds,
            "read_timeout": cluster.join_seconds,
        },
        local_addr=address,
        **common,
    )


class _Relay:
    """Forwards SIGTERM and SIGUSR1 to the workers; a SIGTERM over a second later ends all at once.

    Attributes:
        failure_file: Path of the file with the run's final error, which restarted workers raise.
    """

    def __init__(self, folder: Path) -> None:
        self.failure_file = folder / "failure"
        self._asked: tuple[str, float] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Relay":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def explained(self, error: Exception) -> Exception:
        """Return the error to raise: a worker killed after a forwarded signal was stopped by that signal."""
        killed = isinstance(error, RunError) and "was killed by signal" in str(error)
        return _stopped_by(self._asked[0]) if self._asked and killed else error

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        workers = multiprocessing.active_children()
        again = self._asked is not None and now - self._asked[1] > _AGAIN_SECONDS
        if not workers or (again and number == signal.SIGTERM):
            raise SignalException(f"got {name}", sigval=signal.Signals(number))
        self._asked = self._asked or (name, now)
        self.failure_file.write_text(error_to_text(_stopped_by(name)))  # restarted workers end at once
        for worker in workers:
            if worker.pid is not None:
                os.kill(worker.pid, number)


def _stopped_by(name: str) -> RunError:
    return RunError(f"stopped by {name}; what was finished is kept")


def _no_meeting(cluster: Cluster, error: Exception) -> RunError:
    text = str(error.__cause__ or error) or type(error).__name__
    cause = text.splitlines()[0][:160]
    return RunError(
        f"--rendezvous {cluster.rendezvous}: {cluster.nodes} hosts did not meet there within "
        f"{cluster.join_seconds} s, or lost the connection since ({cause}); check that all hosts run the "
        "same command, that the rendezvous host is one of them and still runs, and that no firewall blocks "
        "the port"
    )


def _silence(*packages: str) -> None:
    """Silence loggers, each by itself: some have levels of their own, which hide a parent's level."""
    for name in (*packages, *logging.root.manager.loggerDict):
        if name.startswith(packages):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def process_group(kind: Kind) -> Iterator[DistEnv]:
    """Join the process group that the environment describes, and leave it at the end, but not after an error.

    After an error other processes may be inside a collective, and leaving could wait for them forever.
    A GPU process also selects its GPU; a CPU process limits torch to its share of the host's cores.

    Raises:
        KeyError: RANK or WORLD_SIZE is not set.
    """
    env = read_dist_env(kind)
    if kind == "gpu":
        torch.cuda.set_device(env.gpu)
        dist.init_process_group("nccl", device_id=env.device, timeout=_COLLECTIVE_TIMEOUT)
    else:
        keep_freed_memory()
        torch.set_num_threads(max(1, usable_cores() // env.local_world_size))
        dist.init_process_group("gloo", timeout=_COLLECTIVE_TIMEOUT)
    yield env
    dist.destroy_process_group()


def _spawned_worker(entry: Callable[..., T], kind: Kind, args: tuple[Any, ...]) -> T | None:
    # Ctrl-C reaches every process of a terminal, and the launcher forwards it: end without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if before := recorded_failure():
        raise before
    result = _worker(entry, kind, args)
    return result if os.environ["LOCAL_RANK"] == "0" else None


@record
def _worker(entry: Callable[..., T], kind: Kind, args: tuple[Any, ...]) -> T | None:
    with process_group(kind) as env:
        try:
            result = entry(env, *args)
        except LostPeerError:
            raise
        except ToolkitError as error:
            record_failure(error)
            announce_failure(error, env)
            raise
        except RuntimeError as error:
            if not any(words in str(error) for words in _LOST_PEER):
                raise
            time.sleep(_ECHO_SECONDS)
            raise LostPeerError(
                f"process {env.rank} lost the connection to another process, whose own error is the cause; "
                "without one, its host or the network failed: continue with --resume"
            ) from error
        return result


def _as_toolkit_error(error: ChildFailedError) -> Exception:
    """Rebuild the first failed worker's error, as this process would have raised it."""
    rank, failure = error.get_first_failure()
    details: Any = failure.error_file_data.get("message") or failure.message
    stack = ""
    if isinstance(details, dict):  # the exception as torch's `record` writes it
        stack = details.get("extraInfo", {}).get("py_callstack", "")
        details = details.get("message", "")
    known = error_from_text(str(details))
    if known is not None:
        return known
    if failure.exitcode < 0:
        return RunError(
            f"process {rank} was killed by signal {-failure.exitcode} (out of memory, or stopped from "
            "outside); continue with --resume"
        )
    return RuntimeError(f"process {rank} failed:\n{stack or details}")


DEFAULT_PORT = 29_400
"""Port of a rendezvous that names none: torch elastic's default."""

# Linux's ioctl for an interface's IPv4 address, and the bytes of its reply that hold the address.
_SIOCGIFADDR = 0x8915
_ADDRESS = slice(20, 24)


def parse_rendezvous(text: str) -> tuple[str, int]:
    """Split HOST:PORT, or HOST alone, into host and port.

    Raises:
        UsageError: Neither form, a port outside 1..65535, or a host name that does not resolve.
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


def is_this_host(host: str) -> bool:
    """Whether a host name or address belongs to this host: a socket can bind to it."""
    for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind((address[0], 0))
            except OSError:
                continue
            return True
    return False


def refuse_port_in_use(host: str, port: int) -> None:
    """Refuse a port of this host that is in use.

    Raises:
        UsageError: Another program listens on it, or this user may not open it.
        OSError: The port cannot be tested for another reason.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "in use by another program" if error.errno == errno.EADDRINUSE else "not open to this user"
            raise UsageError(
                f"--rendezvous {host}:{port}: the port is {why}; choose another, the same on every host"
            ) from error


def address_towards(host: str, port: int) -> str:
    """Return this host's own IP address on the route to another host; nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        found: str = probe.getsockname()[0]
    return found


def interface_of(address: str) -> str | None:
    """Return the name of the network interface with an IPv4 address, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # no IPv4 address
                continue
            if socket.inet_ntoa(reply[_ADDRESS]) == address:
                return name
    return None
