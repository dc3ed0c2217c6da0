"""Measure the memory of the loader over many epochs of a small dataset: RSS after each epoch.

    python benchmarks/loader_soak.py --epochs 50 --chart docs/images/loader-memory.png

Shards few images with `alexnet-prep`, then loads them for --epochs epochs in a separate process for each way
of reading, with `state_dict` after every batch. Small epochs are the hard case, because each opens all shards
anew. Prints RSS after a tenth, half and all of the epochs, and the slope after the first tenth,
which is zero where memory stays flat.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import common
import memory
import psutil
from memory import Course, Trace

_COURSE = Course("epochs", 1.0, ("epoch", 1.0), ("epochs", 1.0))
_CROP = 224
# Largest growth from the median of the first quarter to that of the last, as a share of the first; medians,
# because single epochs end with a batch more or less in memory.
_MOST_GROWTH = 0.1
_WAYS = {
    "mapped": "tars mapped into memory, as on local disks",
    "read": "tars read with read(), as on network file systems",
    "cached": "tars copied to a cache folder first",
    "resumed": "mapped; each epoch is stopped halfway and resumed from its state in another loader",
}


def main() -> int:
    if task := common.child_task():
        print(json.dumps(_run_epochs(**task)))
        return 0
    options = _options()
    with common.work_folder(options.work) as work:
        common.print_facts(common.versions("alexnet-toolkit", "nvidia-dali-cuda130", "torch"))
        data = common.prepare(options.source, work, common.fresh(work / "dataset"), options.images)
        print(f"{options.images} images, {options.epochs} epochs, batches of {options.batch}; RSS in MB\n")
        traces = []
        for way, text in _WAYS.items():
            task = {"way": way, "data": str(data), "cache": str(common.fresh(work / "cache"))}
            rss = common.run_child(task | {"epochs": options.epochs, "batch": options.batch})
            traces.append(Trace(way, [float(epoch) for epoch in range(1, len(rss) + 1)], rss))
            print(f"{way}: {text}", file=sys.stderr)
        common.fresh(work / "dataset")
        common.fresh(work / "cache")
    flat = _report(traces, options)
    if options.chart:
        title = f"Memory of the loader over {options.epochs} epochs of {options.images} images"
        memory.draw(traces, options.epochs, options.chart, title, _COURSE)
    return 0 if flat else 1


def _options() -> argparse.Namespace:
    options = common.parser(__doc__, "source", "work", "chart", "csv", "json")
    options.add_argument("--images", type=int, default=300, help="samples per epoch")
    options.add_argument("--epochs", type=int, default=50, help="number of epochs")
    options.add_argument("--batch", type=int, default=32, help="samples per batch")
    given = common.checked(options)
    if given.epochs < 4 or given.images < 4 * given.batch:
        options.error("--epochs must be at least 4, and --images at least four batches")
    return given


def _run_epochs(way: str, data: str, cache: str, epochs: int, batch: int) -> list[int]:
    """In a child process: load the epochs and return RSS in bytes after each."""
    from pipeline import Dataset, Loader, ReadOptions, TrainView, color_noise

    dataset = Dataset.open(data)
    view = TrainView(_CROP, dataset.statistics.mean, noise=color_noise("paper", dataset.statistics))
    access = ReadOptions(mmap=way != "read", cache=Path(cache) if way == "cached" else None)

    def new_loader() -> Loader:
        return Loader(dataset, "train", view, batch, access=access)

    rss = []
    loader = new_loader()
    for _ in range(epochs):
        if way == "resumed":
            state = _first_half(loader)
            loader.close()
            loader = new_loader()
            loader.load_state_dict(state)
        for _ in loader:
            loader.state_dict()
        rss.append(psutil.Process().memory_info().rss)
    loader.close()
    return rss


def _first_half(loader: Any) -> dict[str, Any]:
    """Load half of an epoch's batches, and return the state after them."""
    for number, _ in enumerate(loader, start=1):
        state: dict[str, Any] = loader.state_dict()
        if number == len(loader) // 2:
            break
    return state


def _growth(trace: Trace) -> float:
    """Return the relative growth of RSS from the median of the first quarter to that of the last."""
    quarter = len(trace.rss) // 4
    return median(trace.rss[-quarter:]) / median(trace.rss[:quarter]) - 1


def _report(traces: list[Trace], options: argparse.Namespace) -> bool:
    print(memory.table(traces, options.epochs, _COURSE, "shards"))
    if options.csv:
        memory.write_csv(traces, options.csv, "way", _COURSE)
    found = {trace.name: memory.figures(trace, options.epochs, _COURSE) for trace in traces}
    common.save_json(options.json, megabytes=found, traces=[asdict(trace) for trace in traces])
    growth = max(map(_growth, traces))
    flat = growth <= _MOST_GROWTH
    target = f"target ≤ {_MOST_GROWTH:.0%}: {common.judged(flat)}"
    print(f"\ngrowth from the first quarter to the last {growth:+.0%}, {target}")
    return flat


if __name__ == "__main__":
    common.finish(main)
