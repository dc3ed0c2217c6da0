"""Record a Chrome trace of a few steps with torch's profiler."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.storage.atomic import write_bytes

# Numbers of steps. The skipped ones fill caches; five recorded ones show what repeats.
_SKIPPED, _WARM_UP, _RECORDED = 5, 2, 5


def new_profiler(path: Path, on_log: Callable[[str], None]) -> profile:
    """Return a profiler that records five steps, after seven others, and writes a Chrome trace in JSON.

    It is a context manager, whose method `step` is to be called after each step. At the end of the block, a
    run with fewer steps writes those that were recorded.

    Args:
        path: File to write. RunError is raised where it cannot be written.
        on_log: Called with a line for the user when the trace has been written.
    """

    def write(recorded: Any) -> None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            file = Path(folder) / "trace.json"
            recorded.export_chrome_trace(str(file))
            write_bytes(path, file.read_bytes())
        on_log(f"{path}: trace of up to {_RECORDED} updates, for chrome://tracing or ui.perfetto.dev")

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(skip_first=_SKIPPED, wait=0, warmup=_WARM_UP, active=_RECORDED, repeat=1)
    return profile(activities=activities, schedule=plan, on_trace_ready=write, record_shapes=True)
