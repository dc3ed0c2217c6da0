"""Memory of the loader over many epochs of a small set: RSS after each.

    python benchmarks/loader_soak.py --epochs 50 --chart docs/images/loader-memory.png

Shards few images with `alexnet-prep`, then goes through them --epochs times in a process for each way of
reading them, with `state_dict` after every batch. Small epochs are the hard case: each builds and frees DALI
pipelines. Prints RSS after a tenth, half and all of the epochs, and the slope after the first tenth, which is
zero where memory stays flat.
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
# Of the first quarter's median; single epochs end with a batch more or less in memory.
_MOST_GROWTH = 0.1
_WAYS = {
    "mapped": "tars mapped into memory, as local disks are read",
    "read": "tars read, as from network file systems",
    "cached": "tars brought to a cache first",
    "resumed": "mapped; each epoch is left halfway and gone on with from its state in another loader",
}


def main() -> int:
    options = _options()
    if options.child:
        way, data, cache = options.child
        _go_through(way, data, Path(cache), options.epochs, options.batch)
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
    options.add_argument("--images", type=int, default=300, help="samples of an epoch")
    options.add_argument("--epochs", type=int, default=50, help="how often to go through them")
    options.add_argument("--batch", type=int, default=32, help="samples of a batch")
    options.add_argument("--work", type=Path, help="folder for the dataset")
    options.add_argument("--chart", type=Path, help="draw RSS over the epochs as PNG")
    options.add_argument("--csv", type=Path, help="write every sample")
    options.add_argument("--json", type=Path, help="write the table's figures")
    options.add_argument("--child", nargs=3, metavar=("WAY", "DATA", "CACHE"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.batch < 1 or given.epochs < 4 or given.images < 4 * given.batch:
        options.error("--epochs is at least 4, --batch 1, and --images four batches")
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
    """Go through the epochs in a process of its own."""
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


def _go_through(way: str, data: str, cache: Path, epochs: int, batch: int) -> None:
    """In a process of its own: print RSS after each epoch."""
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
    """Take half an epoch's batches, and the state after them."""
    for number, _ in enumerate(loader, start=1):
        state: dict[str, Any] = loader.state_dict()
        if number == len(loader) // 2:
            break
    return state


def _growth(trace: Trace) -> float:
    """From the median of the first quarter of the epochs to that of the last."""
    quarter = len(trace.rss) // 4
    return median(trace.rss[-quarter:]) / median(trace.rss[:quarter]) - 1


def _report(traces: list[Trace], options: argparse.Namespace) -> bool:
    print(memory.table(traces, options.epochs, _COURSE, "shards are"))
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
    print(f"\nfrom the first quarter to the last {growth:+.0%}, target ≤ {_MOST_GROWTH:.0%}: {judged}")
    return flat


if __name__ == "__main__":
    common.finish(main)
