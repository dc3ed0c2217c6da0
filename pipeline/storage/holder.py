"""The process that holds a lock, as its lock file names it."""

import datetime
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """Content of a lock file: the process that holds the lock.

    Attributes:
        token: Random name of this holding, never used again.
        host, boot, namespace: Host name, its boot id and the process's PID namespace; "" where the system
            (macOS) does not tell.
        pid, started: Number of the process, and its start time in clock ticks since the boot ("" likewise).
        since: When it took the lock, with the offset from UTC.
        launch: Id of the scheduler's job or torchrun's run, whose restarts have the same; "" without one.
    """

    token: str
    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    since: str
    launch: str

    def is_alive(self) -> bool | None:
        """Whether the process lives; None where this process cannot know."""
        here = (socket.gethostname(), _boot(), _namespace())
        if "" in here or here != (self.host, self.boot, self.namespace):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            pass
        started = _start_of(self.pid)
        return started == self.started if started else None


def new_holder() -> Holder:
    """Describe this process, with a new token."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # torchrun's default is "none", for every run
    return Holder(
        token=secrets.token_hex(8),
        host=socket.gethostname(),
        boot=_boot(),
        namespace=_namespace(),
        pid=os.getpid(),
        started=_start_of(os.getpid()),
        since=datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        launch=os.environ.get("SLURM_JOB_ID") or ("" if run == "none" else run),
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """Return a process's start time in clock ticks since the boot; "ended" for a zombie, "" if not shown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "ended" if state in "ZX" else fields[18]
