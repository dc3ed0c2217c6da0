"""Compare how well orders of an epoch mix: ours, a full permutation, webdataset's shuffle and FFCV's.

    python benchmarks/mixing.py

Only numbers of samples are ordered; no image is read. FFCV's shards are its pages, of 256 samples here (8 MB
of images of 32 KB). The samples were shuffled when they were stored, or are sorted by class.

- ours: `TrainingOrder`, all processes together.
- full permutation: every sample may follow any other.
- webdataset N: `webdataset.filters.shuffle`, first of the shards (with its usual buffer of 100), then of the
  samples with a buffer of N; one worker.
- FFCV: the rule of `ffcv.traversal_order.quasi_random`, written anew here: of 2 × batch pages in memory, each
  sample is the next one of a random page, whose samples were permuted.

The columns: shards and classes in a batch; and which part of all pairs of samples that share a batch in one
epoch do so again in the next, as a multiple of what a full permutation leads to, (batch - 1) / (samples - 1).
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import mean
from typing import Any

import common
import numpy as np
from webdataset.filters import shuffle

from pipeline.loader.order import TrainingOrder, lanes_of

# Samples, samples of a shard, batch. The second is ImageNet as webdataset's authors publish it.
SHAPES = ((32_000, 500, 128), (1_281_167, 1_000, 128), (1_281_167, 1_000, 1_024))
_CLASSES = 1_000
_PAGE = 256
_BUFFERS = (1_000, 5_000)

Ordered = Callable[[int], Any]
"""Epoch → the numbers of its samples in order, int64, at most each once."""


def main() -> int:
    options = _options()
    common.print_facts(common.versions("alexnet-toolkit", "numpy", "webdataset"))
    results = []
    for samples, shard, batch in SHAPES:
        print(
            f"\n{samples:,} samples in shards of {shard:,}, batches of {batch:,}, {options.epochs} epochs\n"
        )
        rows = []
        for name, (shuffled, as_sorted, unit) in _orders(samples, shard, batch).items():
            epochs = [shuffled(epoch) for epoch in range(options.epochs)]
            again = mean(_again(one, other, batch) for one, other in pairwise(epochs))
            found = {
                "shards": _distinct(epochs[0] // unit, batch),
                "classes": _distinct(_random_classes(samples)[epochs[0]], batch),
                "classes_sorted": _distinct(as_sorted(0) * _CLASSES // samples, batch),
                "again": again * (samples - 1) / (batch - 1),
            }
            results.append({"samples": samples, "shard": shard, "batch": batch, "order": name} | found)
            rows.append(
                (name, *(f"{value:,.2f}" if n == "again" else f"{value:,.0f}" for n, value in found.items()))
            )
        print(common.markdown(("order", "shards", "classes", "of a sorted set", "share again, ×"), rows))
    common.save_json(options.json, mixing=results)
    return 0


def _options() -> argparse.Namespace:
    options = common.parser(__doc__, "json")
    options.add_argument("--epochs", type=int, default=3, help="epochs, of which two in a row are compared")
    return common.checked(options)


def _orders(samples: int, shard: int, batch: int) -> dict[str, tuple[Ordered, Ordered, int]]:
    """Return the order of a shuffled and of a sorted set, and the samples of a shard, by name."""
    permutation = lambda epoch: np.random.default_rng(epoch).permutation(samples)  # noqa: E731
    quasi = lambda epoch: _quasi_random(samples, 2 * batch, epoch)  # noqa: E731
    found = {
        "ours": (
            lambda epoch: _ours(samples, shard, batch, epoch, shuffled=True),
            lambda epoch: _ours(samples, shard, batch, epoch, shuffled=False),
            shard,
        ),
        "full permutation": (permutation, permutation, shard),
    }
    for buffer in _BUFFERS:
        order = lambda epoch, buffer=buffer: _webdataset(samples, shard, buffer, epoch)  # noqa: E731
        found[f"webdataset {buffer:,}"] = (order, order, shard)
    return found | {"FFCV quasi-random": (quasi, quasi, _PAGE)}


def _ours(samples: int, shard: int, batch: int, epoch: int, *, shuffled: bool) -> Any:
    begins = np.arange(0, samples, shard)
    sizes = np.diff(np.append(begins, samples)).tolist()
    order = TrainingOrder(sizes, 0, epoch, batch, lanes=lanes_of(batch, shuffled=shuffled))
    batches = (order.batch(number) for number in range(order.batches))
    return np.concatenate([begins[found.shards] + found.samples for found in batches])


def _webdataset(samples: int, shard: int, buffer: int, epoch: int) -> Any:
    shards = shuffle(100, seed=epoch)(iter(range(0, samples, shard)))
    line: Iterator[int] = (k for first in shards for k in range(first, min(first + shard, samples)))
    return np.fromiter(shuffle(buffer, seed=epoch)(line), np.int64, samples)


def _quasi_random(samples: int, most: int, epoch: int) -> Any:
    rng = np.random.default_rng(epoch)
    pages = [
        rng.permutation(np.arange(k, min(k + _PAGE, samples))).tolist() for k in range(0, samples, _PAGE)
    ]
    waiting = [pages[k] for k in rng.permutation(len(pages))]
    live = [waiting.pop() for _ in range(min(most, len(waiting)))]
    found = np.empty(samples, np.int64)
    for at, chance in enumerate(rng.random(samples).tolist()):
        number = int(chance * len(live))
        found[at] = live[number].pop()
        if not live[number]:
            live[number] = live[-1]
            live.pop()
            if waiting:
                live.append(waiting.pop())
    return found


def _random_classes(samples: int) -> Any:
    """Return the class of each sample of a set that was shuffled when it was stored."""
    return np.random.default_rng(1).permutation(np.arange(samples) * _CLASSES // samples)


def _distinct(values: Any, batch: int) -> float:
    """Return how many different values a batch has, on average over the full batches."""
    rows = np.sort(values[: len(values) // batch * batch].reshape(-1, batch), axis=1)
    return float(1 + (np.diff(rows, axis=1) != 0).sum(axis=1).mean())


def _again(one: Any, other: Any, batch: int) -> float:
    """Return the share of the pairs that share a batch in `one` that do so in `other` too.

    Pairs of which one sample is in no full batch of `other` do not count.
    """
    samples = int(max(one.max(), other.max())) + 1
    numbers = []
    for order in (one, other):
        found = np.full(samples, -1)
        full = len(order) // batch * batch
        found[order[:full]] = np.arange(full) // batch
        assert (found >= 0).sum() == full, "a sample twice in an epoch"
        numbers.append(found)
    both = (numbers[0] >= 0) & (numbers[1] >= 0)
    first, second = numbers[0][both], numbers[1][both]
    return _pairs(first * (samples // batch + 1) + second) / _pairs(first)


def _pairs(groups: Any) -> float:
    """Return the number of pairs of equal values."""
    counts = np.unique(groups, return_counts=True)[1]
    return float((counts * (counts - 1) // 2).sum())


if __name__ == "__main__":
    common.finish(main)
