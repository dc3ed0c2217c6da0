"""Run a command and measure wall time, CPU time and memory of it and its child processes."""

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from common import BenchmarkError

# Reading a process's memory takes about a millisecond of CPU time: twice a second is negligible.
_SAMPLE_SECONDS = 0.5


@dataclass
class Usage:
    """Resources that a command used.

    Attributes:
        wall: Seconds from start to exit.
        cpu: User and system CPU seconds of the command and of every process it started and waited for.
        peak: Peak memory of the process tree in bytes, counted as `memory_kind` says.
        output: Its standard output and error.
    """

    wall: float
    cpu: float
    peak: int
    output: str = field(repr=False)


def measure(command: Sequence[str], env: dict[str, str] | None = None) -> Usage:
    """Run a command to its end and measure it.

    Args:
        command: Program and arguments.
        env: Environment variables to add.

    Raises:
        BenchmarkError: The command failed; the message has the end of its output.
    """
    os.sync()  # so that earlier writes are not flushed to disk during this command
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | (env or {})
        )
        with _MemoryPeak(process.pid) as memory:
            try:
                _, status, rusage = os.wait4(process.pid, 0)
            except BaseException:
                end_tree(process.pid)
                raise
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read().decode(errors="replace")
    if process.returncode:
        tail = output.strip()[-2000:]
        raise BenchmarkError(f"exit code {process.returncode} of: {shlex.join(command)}\n{tail}")
    return Usage(wall, rusage.ru_utime + rusage.ru_stime, memory.peak, output)


def end_tree(pid: int) -> None:
    """Kill a process and its descendants."""
    for process in process_tree(pid):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, those that are alive."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_kind() -> str:
    """Return "PSS" (shared pages are divided among processes) on Linux, else "RSS" (counted in each)."""
    return "PSS" if psutil.LINUX else "RSS"


def peak_of_this_process() -> int:
    """Return the peak resident memory of this process in bytes."""
    # Not ru_maxrss: after fork and exec it includes the parent's memory.
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _memory_of(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


class _MemoryPeak:
    """Context manager that samples the memory of a process tree in a thread; `peak` is in bytes."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_MemoryPeak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(_memory_of(p) for p in process_tree(self._pid)))
