"""Protocol between a loader's process (a feeder) and benchmarks/loader.py; imports the standard library only.

A feeder builds its loader, warms up and prints `ready`. For each line on its standard input, a number of
images, it first drops the batches prefetched while it waited and prints `begun`; then it loads at least that
many images and prints one line of JSON with the number of images and the seconds.
"""

import argparse
import json
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WARM_UP = 3
PREFETCHED = 12  # batches dropped before a round: a loader may have prefetched them while it waited
SIZE, CROP = 256, 224
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Order:
    """What a feeder loads.

    Attributes:
        data: Folder of the dataset.
        augmentation: "paper" or "random-resized-crop".
        threads: Number of threads or worker processes.
        batch: Images per batch.
        original: Whether images are stored in their original size.
        kind: Variant of the feeder; "" for the default.
    """

    data: str
    augmentation: str
    threads: int
    batch: int
    original: bool
    kind: str


def read_order(description: str | None) -> Order:
    """Parse the command line of a feeder."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("data", help="folder of the dataset")
    options.add_argument("--augmentation", choices=["paper", "random-resized-crop"], default="paper")
    options.add_argument("--threads", type=int, default=1, help="threads or worker processes")
    options.add_argument("--batch", type=int, default=128, help="images per batch")
    options.add_argument("--original", action="store_true", help="images are stored in their original size")
    options.add_argument("--kind", default="", help="variant of the feeder")
    return Order(**vars(options.parse_args()))


def read_images(folder: Path) -> list[bytes]:
    """Return the bytes of all images in the tars below `folder`."""
    images = []
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".jpg") and file is not None:
                    images.append(file.read())
    return images


def serve(batches: Iterator[int]) -> None:
    """Serve requests until standard input ends; `batches` yields the size of each loaded batch, endlessly."""
    for _ in range(WARM_UP):
        next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted, loaded = int(line), 0
        for _ in range(PREFETCHED):
            next(batches)
        print("begun", flush=True)
        started = time.perf_counter()
        while loaded < wanted:
            loaded += next(batches)
        print(json.dumps({"images": loaded, "seconds": time.perf_counter() - started}), flush=True)
