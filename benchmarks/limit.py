"""The limit of preparation: decoding, resizing and encoding only, each by the fastest candidate.

The files are in memory before timing starts; no tar is written, no statistics and no checks are made.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import simplejpeg
from candidates import CANDIDATES
from common import BenchmarkError, take_turns


@dataclass(frozen=True)
class Timing:
    """Microseconds per image of a candidate of a step, the median of the rounds."""

    step: str
    name: str
    microseconds: float


def try_all(files: Sequence[Path], rounds: int) -> tuple[list[Timing], tuple[str, ...], int]:
    """Time every candidate on one core and choose the fastest of each step.

    The candidates of a step take turns in each round.

    Returns:
        The timings, the names of the fastest candidates, one per step, and the number of images that were
        left out because they do not decode as RGB JPEGs.

    Raises:
        BenchmarkError: No file decodes as an RGB JPEG.
    """
    originals, unfit = usable(files)
    timings: list[Timing] = []
    names: list[str] = []
    inputs: list[Any] = list(originals)
    for step, candidates in CANDIDATES.items():
        parts = {name: partial(_seconds, work, inputs) for name, work in candidates.items()}
        for work in candidates.values():
            work(inputs[0])
        found = take_turns(parts, rounds)
        tried = [Timing(step, name, median(times) / len(inputs) * 1e6) for name, times in found.items()]
        names.append(min(tried, key=lambda timing: timing.microseconds).name)
        inputs = [candidates[names[-1]](item) for item in inputs]
        timings += tried
    return timings, tuple(names), unfit


def _seconds(work: Callable[[Any], Any], inputs: list[Any]) -> float:
    started = time.perf_counter()
    for item in inputs:
        work(item)
    return time.perf_counter() - started


def usable(files: Sequence[Path]) -> tuple[list[bytes], int]:
    """Return the contents of the files that decode as RGB JPEGs, and the number of the others."""
    found = []
    for path in files:
        data = path.read_bytes()
        try:
            simplejpeg.decode_jpeg(data, "RGB")
        except (ValueError, KeyError):  # CMYK, damaged, or an unusual chroma subsampling
            continue
        found.append(data)
    if not found:
        raise BenchmarkError("none of the images decodes as an RGB JPEG")
    return found, len(files) - len(found)


def _chain(names: Sequence[str]) -> Callable[[bytes], bytes]:
    """Compose the named candidates, one per step, into a function of JPEG bytes."""
    work = [CANDIDATES[step][name] for step, name in zip(CANDIDATES, names, strict=True)]

    def run_chain(data: Any) -> bytes:
        for step in work:
            data = step(data)
        return bytes(data)

    return run_chain


def main() -> None:
    """Run a chain in worker processes and print its time, CPU time and output bytes: `limit.py TASK.json`."""
    task = json.loads(Path(sys.argv[1]).read_text())
    processes, count = task["processes"], task["images"]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, _keep, (barrier,)) as pool:
        bounds = [(count * n // processes, count * (n + 1) // processes) for n in range(processes)]
        done = pool.starmap(_work, [(task["files"], task["chain"], lo, hi) for lo, hi in bounds], 1)
    starts, ends, cpu, sizes = zip(*done, strict=True)
    print(json.dumps({"wall": max(ends) - min(starts), "cpu": sum(cpu), "bytes": sum(sizes)}))


_barrier: Any = None


def _keep(barrier: Any) -> None:
    """Initializer of a worker: keep the barrier at which all workers start."""
    global _barrier
    _barrier = barrier


def _work(files: list[str], names: list[str], lo: int, hi: int) -> tuple[float, float, float, int]:
    """In a worker: process images `lo` to `hi` of the repeated files.

    Returns:
        Start and end by `time.monotonic`, CPU seconds, and bytes of output.
    """
    originals, _ = usable([Path(name) for name in files])
    chain = _chain(names)
    chain(originals[0])
    _barrier.wait()
    started, cpu, size = time.monotonic(), time.process_time(), 0
    for number in range(lo, hi):
        size += len(chain(originals[number % len(originals)]))
    return started, time.monotonic(), time.process_time() - cpu, size


if __name__ == "__main__":
    main()
