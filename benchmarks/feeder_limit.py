"""Feeder for the limit in benchmarks/loader.py: libjpeg-turbo decodes whole images that are in memory."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import simplejpeg
from feeder import Order, read_images, read_order, serve

_images: list[bytes] = []


def main() -> None:
    order = read_order(__doc__)
    _images.extend(read_images(Path(order.data, "train")))
    serve(batches(order))


def batches(order: Order) -> Iterator[int]:
    """Yield the number of images decoded by all processes, eight batches for each at a time."""
    number = 0
    with multiprocessing.get_context("fork").Pool(order.threads) as pool:
        while True:
            tasks = [(number + k, order.batch) for k in range(8 * order.threads)]
            number += len(tasks)
            yield sum(pool.imap_unordered(_decode, tasks))


def _decode(task: tuple[int, int]) -> int:
    """Decode one batch, given as (number, size); return its size."""
    number, count = task
    for k in range(count):
        simplejpeg.decode_jpeg(_images[(number * count + k) % len(_images)], "RGB")
    return count


if __name__ == "__main__":
    main()
