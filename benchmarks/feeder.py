"""What a measured loader and benchmarks/loader.py say to each other; runs in a peer's environment too.

A feeder makes its loader, warms up, prints `ready`, and for each line with a number of images on its
standard input first gives what it made ahead while it waited, says `begun`, then gives at least that many and
answers with one line of JSON: images and seconds.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

WARM_UP = 3
MADE_AHEAD = 12
SIZE, CROP = 256, 224
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Order:
    """What is measured: the data's folder, augmentation ("paper", "random-resized-crop"), threads, batch."""

    data: str
    augmentation: str
    threads: int
    batch: int
    original: bool
    kind: str


def read_order(description: str | None) -> Order:
    """The command line of a feeder."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("data")
    options.add_argument("--augmentation", choices=["paper", "random-resized-crop"], default="paper")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--original", action="store_true", help="images of their original size")
    options.add_argument("--kind", default="", help="a feeder's variant")
    return Order(**vars(options.parse_args()))


def serve(batches: Iterator[int]) -> None:
    """Answer until standard input ends; `batches` gives the number of images in each, without end."""
    for _ in range(WARM_UP):
        next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted, given = int(line), 0
        for _ in range(MADE_AHEAD):
            next(batches)
        print("begun", flush=True)
        started = time.perf_counter()
        while given < wanted:
            given += next(batches)
        print(json.dumps({"images": given, "seconds": time.perf_counter() - started}), flush=True)
