"""A run's state, as other processes read it from its folder: status.json, run.json, metrics, checkpoints."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from pipeline.errors import RunError, UsageError
from pipeline.storage.locks import is_held
from trainer.runs import checkpoint
from trainer.runs.metrics_file import read_metrics
from trainer.runs.records import MetricsRow, StepMetrics, in_words
from trainer.runs.run_folder import LOCK_FILE, RUN_FILE, is_run

STATUS_FILE = "status.json"
# A run writes its status every few seconds while it trains; validating and compiling take longer.
_QUIET_SECONDS = 300.0

State = Literal["starting", "training", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Status:
    """Content of status.json.

    Attributes:
        state: "starting" until the first step is reported, then "training", or how the run ended.
        host, pid: Host name and process id of process 0.
        started, updated: Times of the run's start and of this status, in seconds since 1970.
        epochs: Number of finished epochs.
        step: Last metrics within an epoch; None before the first.
        line: Last log line, or how the run ended.
    """

    state: State
    host: str
    pid: int
    started: float
    updated: float
    epochs: int = 0
    step: StepMetrics | None = None
    line: str = ""


@dataclass(frozen=True)
class RunState:
    """A run's state as read from its folder.

    Attributes:
        status: Content of status.json; None for a run of a release without it.
        health: A few words on whether the run goes on, ended, or is dead, by its lock.
        facts: Content of run.json.
        rows: Metrics of the finished epochs, and of the validations within epochs.
        checkpoints: File name → seconds since it was written; last.pt and best.pt first, then newest first.
    """

    status: Status | None
    health: str
    facts: dict[str, object]
    rows: list[MetricsRow]
    checkpoints: dict[str, float]


def read_run(folder: Path) -> RunState:
    """Read the state of a run from its folder.

    Raises:
        UsageError: There is no run, or its files are damaged.
    """
    if not is_run(folder):
        raise UsageError(f"{folder}: no run there; give the folder that alexnet-train got as --out")
    path = folder / STATUS_FILE
    try:
        status = msgspec.json.decode(path.read_bytes(), type=Status) if path.is_file() else None
        facts = msgspec.json.decode((folder / RUN_FILE).read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{folder}: {STATUS_FILE} or {RUN_FILE} cannot be read ({error})") from error
    now = time.time()
    files = [folder / checkpoint.LAST, folder / checkpoint.BEST, *checkpoint.steps_of(folder)]
    ages = {file.name: now - file.stat().st_mtime for file in files if file.is_file()}
    return RunState(status, _health(folder, status, now), facts, read_metrics(folder), ages)


def _health(folder: Path, status: Status | None, now: float) -> str:
    if status is None:
        return "unknown: the run has no status.json"
    if status.state not in ("starting", "training"):
        return status.state
    if not _is_held(folder):
        return "dead: no process works there; continue with --resume"
    if now - status.updated > _QUIET_SECONDS:
        return f"no sign of life for {in_words(now - status.updated)}"
    return status.state


def _is_held(folder: Path) -> bool:
    try:
        return is_held(folder / LOCK_FILE)
    except RunError:  # the age of a lock cannot be measured in a folder that this user may only read
        return True
