"""The limit of preparation: decoding, resizing and encoding only, each by the fastest candidate.

The files are in memory before timing starts; no tar is written, no statistics and no checks are made.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from candidates import STEPS, Candidate, candidates
from common import BenchmarkError


@dataclass(frozen=True)
class Timing:
    """Microseconds per image of a candidate, the median of the rounds."""

    candidate: Candidate
    microseconds: float


def try_all(files: Sequence[Path], rounds: int) -> tuple[list[Timing], tuple[str, ...], list[str]]:
    """Time every candidate on one core and choose the fastest chain.

    The candidates of a step take turns in each round.

    Returns:
        The timings; the names of the fastest chain's candidates, one per step or one for all; and notes on
        candidates and images that were left out.

    Raises:
        BenchmarkError: No file decodes as an RGB JPEG.
    """
    found, notes = candidates()
    originals, unfit = usable(files)
    if unfit:
        notes.append(f"{unfit} of {len(files)} images were left out: they do not decode as RGB JPEGs")
    timings: list[Timing] = []
    names: list[str] = []
    inputs: list[Any] = list(originals)
    for step in STEPS:
        tried = _time([c for c in found if c.step == step], inputs, rounds)
        best = min((t for t in tried if t.candidate.equal), key=lambda t: t.microseconds).candidate
        inputs = [best.work(item) for item in inputs]
        timings += tried
        names.append(best.name)
    mixed = Candidate("all", "the fastest of each step", _chain(tuple(names)))
    whole = _time([c for c in found if c.step == "all"] + [mixed], originals, rounds)
    best = min(whole, key=lambda t: t.microseconds).candidate
    return timings + whole, tuple(names) if best is mixed else (best.name,), notes


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


def _time(tried: list[Candidate], inputs: list[Any], rounds: int) -> list[Timing]:
    seconds: dict[Candidate, list[float]] = {candidate: [] for candidate in tried}
    for candidate in tried:
        candidate.work(inputs[0])
    for _ in range(rounds):
        for candidate in tried:
            started = time.perf_counter()
            for item in inputs:
                candidate.work(item)
            seconds[candidate].append(time.perf_counter() - started)
    return [Timing(c, float(np.median(times)) / len(inputs) * 1e6) for c, times in seconds.items()]


def _chain(names: tuple[str, ...]) -> Callable[[bytes], bytes]:
    """Compose the named candidates, one per step or one for all steps, into a function of JPEG bytes."""
    found, _ = candidates()
    steps = ("all",) if len(names) == 1 else STEPS
    work = [
        next(c.work for c in found if (c.step, c.name) == wanted) for wanted in zip(steps, names, strict=True)
    ]

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
    chain = _chain(tuple(names))
    chain(originals[0])
    _barrier.wait()
    started, cpu, size = time.monotonic(), time.process_time(), 0
    for number in range(lo, hi):
        size += len(chain(originals[number % len(originals)]))
    return started, time.monotonic(), time.process_time() - cpu, size


if __name__ == "__main__":
    main()
