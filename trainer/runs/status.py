"""RUN/status.json: where a run is, for whoever looks at its folder from outside."""

import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import write_bytes
from trainer.runs import checkpoint
from trainer.runs.records import Ending, EpochMetrics, StepMetrics, Weights
from trainer.runs.run_folder import RUN_FILE, is_run, read_metrics

STATUS_FILE = "status.json"
_EVERY_SECONDS = 5.0
# A run writes every few seconds while it trains; validating and compiling take longer.
_QUIET_SECONDS = 300.0

State = Literal["starting", "training", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Status:
    """What a run last said of itself.

    Attributes:
        state: "starting" before the first update is reported.
        host, pid: of its first process.
        started, updated: seconds since 1970.
        epochs: finished.
        step: where it is, None before the first report.
        line: how it ended, or its last note.
    """

    state: State
    host: str
    pid: int
    started: float
    updated: float
    epochs: int = 0
    step: StepMetrics | None = None
    line: str = ""


class StatusCallback:
    """Keeps a run's status.json, at most every five seconds. A disk that takes none is no reason to stop."""

    wants_weights = False

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATUS_FILE
        now = time.time()
        self._status = Status("starting", socket.gethostname(), os.getpid(), now, now)
        self._written = 0.0
        self._begun = False

    def on_start(self, facts: dict[str, str]) -> None:
        """The folder is there from now on."""
        self._begun = True
        self._write()

    def on_log(self, line: str) -> None:
        """Keep it."""
        self._status = replace(self._status, line=line)

    def on_step(self, row: StepMetrics) -> None:
        """Keep where the run is."""
        self._status = replace(self._status, state="training", step=row)
        if time.monotonic() - self._written > _EVERY_SECONDS:
            self._write()

    def on_epoch(self, row: EpochMetrics, epochs: int, best: bool) -> None:
        """Keep how far it came."""
        self._status = replace(self._status, epochs=row.epoch)
        self._write()

    def on_weights(self, weights: Weights) -> None:
        """Nothing of them is kept."""

    def on_end(self, how: Ending, line: str) -> None:
        """Keep how it ended; a run that was refused at the start leaves another's folder alone."""
        self._status = replace(self._status, state=how, line=line)
        if self._begun:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._status = replace(self._status, updated=time.time())
        try:
            write_bytes(self._path, msgspec.json.encode(self._status))
        except RunError:
            return


@dataclass(frozen=True)
class RunState:
    """A run's folder, seen from outside.

    Attributes:
        status: None where the run is older than status.json.
        verdict: in a few words, whether it lives.
        facts: run.json.
        rows: finished epochs.
        checkpoints: file name → seconds since it was written, newest first.
    """

    status: Status | None
    health: str
    facts: dict[str, object]
    rows: list[EpochMetrics]
    checkpoints: dict[str, float]


def read_run(folder: Path) -> RunState:
    """Read a run's folder.

    Raises:
        UsageError: no run there, or files that are damaged.
    """
    if not is_run(folder):
        raise UsageError(f"{folder}: no run there; give the folder that alexnet-train named as --out")
    path = folder / STATUS_FILE
    try:
        status = msgspec.json.decode(path.read_bytes(), type=Status) if path.is_file() else None
        facts = msgspec.json.decode((folder / RUN_FILE).read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{folder}: {STATUS_FILE} or {RUN_FILE} cannot be read ({error})") from error
    now = time.time()
    files = [folder / checkpoint.LAST, folder / checkpoint.BEST, *checkpoint.steps_of(folder)]
    ages = {file.name: now - file.stat().st_mtime for file in files if file.is_file()}
    return RunState(status, _health(status, now), facts, read_metrics(folder), ages)


def _health(status: Status | None, now: float) -> str:
    if status is None:
        return "unknown: the run has no status.json"
    if status.state not in ("starting", "training"):
        return status.state
    if status.host == socket.gethostname() and not _lives(status.pid):
        return "dead: its process is gone; continue with --resume"
    if now - status.updated > _QUIET_SECONDS:
        return f"no sign of life for {(now - status.updated) / 60:.0f} min"
    return status.state


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
