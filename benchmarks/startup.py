"""Measure the time from a process's start to its first batch, on a dataset of ImageNet's size.

    python benchmarks/startup.py --work /tmp/startup

Makes 1,281,167 tiny JPEGs of 256×256 pixels in 640 tars (some 2.7 GB), then starts processes that open them
and load one batch: at the start of an epoch, and resumed from a state past 90 % of an epoch; as a single
process, and as rank 3 of 8. Each case runs --rounds times.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import common
import psutil
import tiny_dataset
from common import BenchmarkError
from processes import peak_of_this_process

SAMPLES, TARS = 1_281_167, 640
_MOST_SECONDS = 10.0
_CROP = 224
_EPOCH, _SHARE = 1, 0.9


@dataclass(frozen=True)
class Task:
    """Task of a child process.

    Attributes:
        kind: "first" (load the first batch) or "state" (return the loader's state past 90 % of an epoch).
        data: Folder of the dataset.
        batch: Samples per batch of one process.
        rank, world_size: Rank of the process and number of processes.
        state: Loader state to resume from, for "first"; None starts an epoch.
        started: `time.monotonic()` when the process was started.
    """

    kind: str
    data: str
    batch: int
    rank: int = 0
    world_size: int = 1
    state: dict[str, Any] | None = None
    started: float = field(default_factory=time.monotonic)


def main() -> int:
    if found := common.child_task():
        task = Task(**found)
        print(json.dumps((_first if task.kind == "first" else _state)(task)))
        return 0
    options = _options()
    with common.work_folder(options.work) as work:
        common.print_facts(common.versions("alexnet-toolkit", "nvidia-dali-cuda130", "torch"))
        data = tiny_dataset.at(work, options.samples, options.tars)
        size = sum(path.stat().st_size for path in data.rglob("*"))
        print(f"{options.samples:,} samples in {options.tars} tars, {size / 1e9:.2f} GB\n")
        cases = _cases(options, data)
        rounds = _measure(cases, options, data)
        met = _report(rounds, options)
        common.save_json(options.json, rounds=rounds)
    return 0 if met else 1


def _options() -> argparse.Namespace:
    options = common.parser(__doc__, "rounds", "work", "json")
    options.add_argument("--batch", type=int, default=128, help="samples per batch of one process")
    options.add_argument(
        "--cold", action="store_true", help="drop the tars from the page cache before each process"
    )
    options.add_argument(
        "--samples", type=int, default=SAMPLES, help="number of samples; fewer to try the script"
    )
    options.add_argument("--tars", type=int, default=TARS, help="number of tars; fewer to try the script")
    given = common.checked(options)
    if given.samples < 80 * given.batch:
        options.error("--samples must be at least 80 times --batch")
    return given


def _cases(options: argparse.Namespace, data: Path) -> dict[str, Task]:
    """Return name → task of each case to measure."""
    cases = {}
    for name, rank, world_size in (("one process", 0, 1), ("rank 3 of 8", 3, 8)):
        start = Task("first", str(data), options.batch, rank, world_size)
        cases[f"{name}: start"] = start
        state = _run(replace(start, kind="state"))
        share = state["batch"] * options.batch * world_size / options.samples
        cases[f"{name}: resume at {share:.0%}"] = replace(start, state=state)
    return cases


def _measure(cases: dict[str, Task], options: argparse.Namespace, data: Path) -> dict[str, Any]:
    def run(task: Task) -> dict[str, float]:
        if options.cold:
            common.forget_pages(data)
        return dict(_run(task))

    parts = {name: partial(run, task) for name, task in cases.items()}
    return common.take_turns(parts, options.rounds, lambda name, found: f"{name}: {found['whole']:.1f} s")


def _report(rounds: dict[str, Any], options: argparse.Namespace) -> bool:
    cache = "dropped from" if options.cold else "in"
    print(
        f"Medians of {options.rounds} rounds (minimum–maximum), each a new process; tars {cache} the page "
        f"cache; batches of {options.batch}, {_CROP} px, on {common.cores()} cores\n"
    )
    header = ("", "first batch, s", "import", "open", "loader", "iterate", "RSS, MB", "peak MB")
    rows = []
    for name, runs in rounds.items():
        whole = [run["whole"] for run in runs]
        parts = [f"{median(run[part] for run in runs):.1f}" for part in header[2:6]]
        memory = [f"{max(run[part] for run in runs) / 1e6:,.0f}" for part in ("rss", "peak")]
        rows.append((name, common.spread(whole, 1), *parts, *memory))
    print(common.markdown(header, rows))
    if (options.samples, options.tars) != (SAMPLES, TARS):
        print("\nnot all samples: the limit is not checked")
        return True
    met = all(median(run["whole"] for run in runs) < _MOST_SECONDS for runs in rounds.values())
    print(f"\nevery first batch in under {_MOST_SECONDS:.0f} s: {'yes' if met else 'NO'}")
    return met


def _run(task: Task) -> Any:
    return common.run_child(asdict(replace(task, started=time.monotonic())))


def _first(task: Task) -> dict[str, float]:
    """In a child process: return the seconds to the first batch and of each part, and memory in bytes."""
    begun = time.monotonic()
    from pipeline import Dataset, Loader  # noqa: F401 - to time the imports separately

    imported = time.monotonic()
    dataset = Dataset.open(task.data)
    opened = time.monotonic()
    with _loader(dataset, task) as loader:
        if task.state is not None:
            loader.load_state_dict(task.state)
        made = time.monotonic()
        batch = next(iter(loader))
        loaded = time.monotonic()
        if batch.images.shape != (task.batch, 3, _CROP, _CROP):
            raise BenchmarkError(f"the first batch has the shape {tuple(batch.images.shape)}")
        return {
            "whole": loaded - task.started,
            "import": imported - begun,
            "open": opened - imported,
            "loader": made - opened,
            "iterate": loaded - made,
            "rss": psutil.Process().memory_info().rss,
            "peak": peak_of_this_process(),
        }


def _state(task: Task) -> dict[str, Any]:
    """In a child process: return the loader's state past 90 % of an epoch, as a run would save it."""
    from pipeline import Dataset

    with _loader(Dataset.open(task.data), task) as loader:
        loader.set_position(_EPOCH, int(len(loader) * _SHARE))
        state: dict[str, Any] = loader.state_dict()
        return state


def _loader(dataset: Any, task: Task) -> Any:
    from pipeline import Loader, Placement, TrainView, color_noise

    view = TrainView(_CROP, dataset.statistics.mean, noise=color_noise("paper", dataset.statistics))
    place = Placement(task.rank, task.world_size)
    return Loader(dataset, "train", view, task.batch * task.world_size, placement=place)


if __name__ == "__main__":
    common.finish(main)
