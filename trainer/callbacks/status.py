"""Status callback: writes RUN/status.json while a run goes on."""

import os
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from pipeline.errors import RunError
from pipeline.storage.atomic import write_bytes
from trainer.callbacks.base import Callback
from trainer.runs.records import Ending, MetricsRow, StepMetrics
from trainer.runs.status import STATUS_FILE, Status

_EVERY_SECONDS = 5.0


class StatusCallback(Callback):
    """Writes a run's status.json, every five seconds at most; a failure to write it does not end the run.

    A thread writes it, as a slow disk must not delay training; at the end it is waited for.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATUS_FILE
        now = time.time()
        self._status = Status("starting", socket.gethostname(), os.getpid(), now, now)
        self._written = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alexnet-status")
        self._writing: Future[None] | None = None

    def on_start(self, facts: dict[str, str]) -> None:
        """Write the first status: from now on the folder is this run's."""
        self._write()

    def on_log(self, line: str) -> None:
        """Keep the line for the next status."""
        self._status = replace(self._status, line=line)

    def on_step(self, row: StepMetrics) -> None:
        """Keep the metrics, and write them if the last status is over five seconds old."""
        self._status = replace(self._status, state="training", step=row)
        if time.monotonic() - self._written > _EVERY_SECONDS:
            self._write()

    def on_validation(self, row: MetricsRow, epochs: int) -> None:
        """Write that the run is alive: a validation may have taken minutes."""
        self._write()

    def on_epoch(self, row: MetricsRow, epochs: int, best: bool) -> None:
        """Write the number of finished epochs."""
        self._status = replace(self._status, epochs=row.epoch)
        self._write()

    def on_end(self, how: Ending, line: str) -> None:
        """Write how the run ended, unless it never started: the folder may then be another run's."""
        self._status = replace(self._status, state=how, line=line)
        if self._written:
            self._write()
        self._thread.shutdown()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._status = replace(self._status, updated=time.time())
        if self._writing is not None:
            self._writing.cancel()  # a newer one follows
        self._writing = self._thread.submit(_write_quietly, self._path, msgspec.json.encode(self._status))


def _write_quietly(path: Path, data: bytes) -> None:
    with suppress(RunError):
        write_bytes(path, data)
