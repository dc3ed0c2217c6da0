"""Our commands as real processes under conditions of the outside world: user, environment, stdout, limits."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

NOBODY = 64_512
"""Number of a user and of a group without entries in passwd, as in a container under a foreign uid."""

Stdout = Literal["captured", "full", "gone", "closed", "one line"]
"""Stdout: captured; a full disk; a pipe without reader; no descriptor; a reader that leaves after a line."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended; bytes that are not UTF-8 are shown as `\\xNN`."""

    code: int
    stdout: str
    stderr: str


def start(
    command: str,
    *arguments: object,
    unprivileged: bool = False,
    variables: Mapping[str, str | None] | None = None,
    open_files: int | None = None,
    mounts: str | None = None,
    cwd: Path | None = None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start one of our installed commands, such as "alexnet-train", in a session of its own.

    Args:
        command: Name of the command.
        arguments: Its arguments.
        unprivileged: Run as `NOBODY`; the folders used must be open to it (fixture `open_folder`).
        variables: Environment variables to set, or where None, to remove.
        open_files: Soft limit of open files (`ulimit -Sn`).
        mounts: Shell commands that mount file systems for this process alone, such as over /dev/shm.
        cwd: Current folder.
        options: For `subprocess.Popen`; stdout and stderr are pipes by default.
    """
    line = [str(Path(sys.executable).parent / command), *map(str, arguments)]
    if open_files is not None:
        line = ["sh", "-c", f'ulimit -Sn {open_files} && exec "$@"', "sh", *line]
    if mounts is not None:
        if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            pytest.skip("needs root and unshare, to mount file systems")
        line = ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *line]
    if unprivileged:
        if os.geteuid() != 0 or shutil.which("setpriv") is None:
            pytest.skip("needs root and setpriv, to run as another user")
        line = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *line]
    given = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | dict(variables or {})
    return subprocess.Popen(
        line,
        cwd=cwd,
        env={name: value for name, value in given.items() if value is not None},
        start_new_session=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


def run(
    command: str, *arguments: object, stdout: Stdout = "captured", timeout: float = 240, **conditions: Any
) -> Ended:
    """Run one of our commands to its end; see `start` for the conditions."""
    if stdout == "captured":
        process = start(command, *arguments, **conditions)
    elif stdout == "full":
        with Path("/dev/full").open("wb") as full:
            process = start(command, *arguments, stdout=full, **conditions)
    elif stdout == "closed":
        process = start(command, *arguments, stdout=None, preexec_fn=lambda: os.close(1), **conditions)
    else:
        reader, writer = os.pipe()
        process = start(command, *arguments, stdout=writer, **conditions)
        os.close(writer)
        if stdout == "one line":
            with os.fdopen(reader, "rb") as pipe:
                line = pipe.readline()
            _, errors = process.communicate(timeout=timeout)
            return Ended(process.returncode, _text(line), _text(errors))
        os.close(reader)
    return ended(process, timeout)


def ended(process: subprocess.Popen[bytes], timeout: float = 240) -> Ended:
    """Wait for a started process; one that outlasts `timeout` seconds is killed with its group."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, errors = process.communicate()
        pytest.fail(f"still running after {timeout:.0f} s:\n{_text(output)}{_text(errors)}")
    return Ended(process.returncode, _text(output), _text(errors))


def one_line(errors: str, *parts: str) -> str:
    """Check that stderr ends with one `error:` line that has these parts, without a traceback; return it."""
    assert "Traceback" not in errors, errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="backslashreplace")
