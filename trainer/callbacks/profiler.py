"""A Chrome trace of a few updates."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.storage.atomic import write_bytes

# The first updates fill caches; then enough of them to see what repeats.
_SKIPPED, _WARM_UP, _RECORDED = 5, 2, 5


class Profiler:
    """Is told of every update."""

    def __init__(self, path: Path | None, profiled: Any) -> None:
        self._path, self._profile, self._updates = path, profiled, 0

    def step(self) -> str:
        """Note an update; what to tell the user once the trace is written, else ''."""
        if self._profile is None:
            return ""
        self._profile.step()
        self._updates += 1
        if self._updates != _SKIPPED + _WARM_UP + _RECORDED:
            return ""
        return f"{self._path}: trace of {_RECORDED} updates, for chrome://tracing or ui.perfetto.dev"


@contextmanager
def profiler(path: Path | None) -> Iterator[Profiler]:
    """Record some updates within the block and write them to `path`, a Chrome trace in JSON; None: nothing.

    A run with fewer updates writes those that there were.

    Raises:
        RunError: `path` cannot be written.
    """
    if path is None:
        yield Profiler(None, None)
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def write(found: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            found.export_chrome_trace(str(file))
            write_bytes(path, file.read_bytes())

    plan = schedule(skip_first=_SKIPPED, wait=0, warmup=_WARM_UP, active=_RECORDED, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, record_shapes=True) as found:
        yield Profiler(path, found)
