"""Record a Chrome trace of a few steps with torch's profiler."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.storage.atomic import write_bytes

# Numbers of steps. The skipped ones fill caches; five recorded ones show what repeats.
_SKIPPED, _WARM_UP, _RECORDED = 5, 2, 5


class Profiler:
    """Counts the steps of a run for torch's profiler."""

    def __init__(self, path: Path | None, active: Any) -> None:
        """Count for the `active` torch profiler, which writes to `path`; both are None without a profile."""
        self._path, self._profile, self._steps = path, active, 0

    def step(self) -> str:
        """Record that a step ended; return a log line when the trace has been written, else ""."""
        if self._profile is None:
            return ""
        self._profile.step()
        self._steps += 1
        if self._steps != _SKIPPED + _WARM_UP + _RECORDED:
            return ""
        return f"{self._path}: trace of {_RECORDED} updates, for chrome://tracing or ui.perfetto.dev"


@contextmanager
def profiler(path: Path | None) -> Iterator[Profiler]:
    """Record five steps within the block, after seven others, and write them as a Chrome trace in JSON.

    A run with fewer steps writes those that were recorded.

    Args:
        path: File to write; with None nothing is recorded.

    Raises:
        RunError: `path` cannot be written.
    """
    if path is None:
        yield Profiler(None, None)
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def write(recorded: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            recorded.export_chrome_trace(str(file))
            write_bytes(path, file.read_bytes())

    plan = schedule(skip_first=_SKIPPED, wait=0, warmup=_WARM_UP, active=_RECORDED, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, record_shapes=True) as active:
        yield Profiler(path, active)
