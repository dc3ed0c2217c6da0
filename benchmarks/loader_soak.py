"""Measure the memory of the loader over many epochs of a small dataset: RSS after each epoch.

    python benchmarks/loader_soak.py --epochs 50 --chart docs/images/loader-memory.png

Shards few images with `alexnet-prep`, then loads them for --epochs epochs in a separate process for each way
of reading, with `state_dict` after every batch. Small epochs are the hard case, because each builds and frees
DALI pipelines. Prints RSS after a tenth, half and all of the epochs, and the slope after the first tenth,
which is zero where memory stays flat.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import common
import memory
import psutil
from common import BenchmarkError
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
    options = _options()
    if options.child:
        way, data, cache = options.child
        _run_epochs(way, data, Path(cache), options.epochs, options.batch)
        return 0
    common.check_chart(options.chart)
    with common.work_folder(options.work) as work:
        common.print_facts(common.versions("alexnet-toolkit", "nvidia-dali-cuda130", "torch"))
        data = _dataset(options.source, options.images, work)
        print(f"{options.images} images, {options.epochs} epochs, batches of {options.batch}; RSS in MB\n")
        traces = [_watch(way, data, common.fresh(work / "cache"), options) for way in _WAYS]
        for name in ("originals", "images", "dataset", "cache"):
            common.fresh(work / name)
    flat = _report(traces, options)
    if options.chart:
        title = f"Memory of the loader over {options.epochs} epochs of {options.images} images"
        memory.draw(traces, options.epochs, options.chart, title, _COURSE)
    return 0 if flat else 1


def _options() -> argparse.Namespace:
    options = common.parser(__doc__)
    source = common.test_data() / "imagenet-sample"
    options.add_argument("--source", type=Path, default=source, help="folder with JPEGs in class folders")
    options.add_argument("--images", type=int, default=300, help="samples per epoch")
    options.add_argument("--epochs", type=int, default=50, help="number of epochs")
    options.add_argument("--batch", type=int, default=32, help="samples per batch")
    options.add_argument("--work", type=Path, help="folder for the dataset; a temporary one if not given")
    options.add_argument("--chart", type=Path, help="draw RSS over the epochs to this PNG file")
    options.add_argument("--csv", type=Path, help="write RSS after every epoch to this file")
    options.add_argument("--json", type=Path, help="write the table and every sample to this file")
    options.add_argument("--child", nargs=3, metavar=("WAY", "DATA", "CACHE"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.batch < 1 or given.epochs < 4 or given.images < 4 * given.batch:
        options.error("--epochs must be at least 4, --batch at least 1, and --images at least four batches")
    return given


def _dataset(source: Path, images: int, work: Path) -> Path:
    originals = common.copy_originals(common.jpegs_below(source), common.fresh(work / "originals"))
    common.repeat(originals, common.fresh(work / "images"), images)
    out = common.fresh(work / "dataset")
    command = [common.tool("alexnet-prep"), "shard", str(work / "images"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"alexnet-prep failed:\n{done.stderr.strip()[-2000:]}")
    return out


def _watch(way: str, data: Path, cache: Path, options: argparse.Namespace) -> Trace:
    """Run the epochs in a separate process and return its RSS after each."""
    numbers = [
        "--epochs",
        str(options.epochs),
        "--batch",
        str(options.batch),
        "--images",
        str(options.images),
    ]
    command = [sys.executable, __file__, "--child", way, str(data), str(cache), *numbers]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{way!r} failed:\n{done.stderr.strip()[-2000:]}")
    trace = Trace(way)
    for epoch, line in enumerate(done.stdout.split(), start=1):
        trace.add(epoch, int(line))
    print(f"{way}: {_WAYS[way]}", file=sys.stderr)
    return trace


def _run_epochs(way: str, data: str, cache: Path, epochs: int, batch: int) -> None:
    """Entry point of the separate process: load the epochs and print RSS in bytes after each."""
    from pipeline import Dataset, Loader, ReadOptions, TrainView, color_noise

    dataset = Dataset.open(data)
    view = TrainView(_CROP, dataset.statistics.mean, noise=color_noise("paper", dataset.statistics))
    access = ReadOptions(mmap=way != "read", cache=cache if way == "cached" else None)

    def new_loader() -> Loader:
        return Loader(dataset, "train", view, batch, access=access, keys=True)

    process = psutil.Process()
    loader = new_loader()
    for _ in range(epochs):
        if way == "resumed":
            state = _first_half(loader)
            loader.close()
            loader = new_loader()
            loader.load_state_dict(state)
        for _ in loader:
            loader.state_dict()
        print(process.memory_info().rss, flush=True)
    loader.close()


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
    if options.json:
        facts = {
            "command": common.command_line(),
            "machine": common.machine(),
            "megabytes": found,
            "traces": [asdict(trace) for trace in traces],
        }
        options.json.write_text(json.dumps(facts, indent=1))
    growth = max(map(_growth, traces))
    flat = growth <= _MOST_GROWTH
    judged = "met" if flat else "MISSED"
    print(f"\ngrowth from the first quarter to the last {growth:+.0%}, target ≤ {_MOST_GROWTH:.0%}: {judged}")
    return flat


if __name__ == "__main__":
    common.finish(main)
