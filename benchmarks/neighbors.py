"""Compare our nearest-neighbor search with a chunked `torch.cdist` + `topk`, each in a separate process.

    python benchmarks/neighbors.py

Rows are random features like those after a ReLU (half of the values are zero). They are generated chunk by
chunk from a seed, so that neither contender holds them all; the time for it is not counted. Some rows are
near-duplicates of queries. The contenders take turns for --rounds rounds. Then every distance is computed in
float64 from differences, and the contenders' lists are compared with these: ours must be the same, index by
index, or the exit code is 1.
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import common
import numpy as np
from processes import peak_of_this_process

CONTENDERS = ("ours", "torch.cdist + topk")
_CHUNK_ROWS = 4096
_DUPLICATES_EVERY = 5000


class Rows:
    """Generates the same vectors in each pass.

    Attributes:
        queries: (queries, length) float32.
        seconds: Time spent generating rows so far.
    """

    def __init__(self, count: int, length: int, queries: int) -> None:
        self.count, self.length = count, length
        self.queries = _features(np.random.default_rng([0, 0]), queries, length)
        self.seconds = 0.0

    def chunks(self) -> Iterator[Any]:
        """Yield (n, length) float32 chunks of all rows, n at most _CHUNK_ROWS."""
        for start in range(0, self.count, _CHUNK_ROWS):
            started = time.perf_counter()
            rows = self._chunk(start)
            self.seconds += time.perf_counter() - started
            yield rows

    def _chunk(self, start: int) -> Any:
        rng = np.random.default_rng([1, start])
        rows = _features(rng, min(_CHUNK_ROWS, self.count - start), self.length)
        for row in range(-start % _DUPLICATES_EVERY, len(rows), _DUPLICATES_EVERY):
            rows[row] = self.queries[rng.integers(len(self.queries))]
            rows[row, rng.integers(self.length)] += np.float32(rng.uniform(0, 1e-3))
        return rows


def main() -> int:
    if task := common.child_task():
        print(json.dumps(_search(**task)))
        return 0
    options = _options()
    common.print_facts(common.versions("alexnet-toolkit", "numpy", "torch"))
    task = {name: getattr(options, name) for name in ("rows", "length", "queries", "count")}
    parts = {name: partial(common.run_child, task | {"contender": name}) for name in CONTENDERS}
    runs = common.take_turns(parts, options.rounds, lambda name, run: f"{name}: {run['seconds']:.1f} s")
    print(f"{options.rows:,} × {options.length:,} float32, {options.queries} queries, k = {options.count}\n")
    truth = _truth(options)
    rows = []
    for name, found in runs.items():
        right = sum(a == b for a, b in zip(found[0]["indices"], truth, strict=True))
        seconds = common.spread([run["seconds"] for run in found], 2)
        peak = f"{max(run['peak'] for run in found) / 1e9:.2f}"
        rows.append((name, seconds, peak, f"{right} of {len(truth)}"))
    print(common.markdown(("", "seconds", "peak GB", "lists that are exact"), rows))
    common.save_json(options.json, runs=runs)
    return 0 if all(run["indices"] == truth for run in runs["ours"]) else 1


def _options() -> argparse.Namespace:
    options = common.parser(__doc__, "rounds", "json")
    options.add_argument("--rows", type=int, default=100_000, help="vectors to search")
    options.add_argument("--length", type=int, default=4096, help="length of a vector")
    options.add_argument("--queries", type=int, default=64, help="vectors to search for")
    options.add_argument("--count", type=int, default=10, help="neighbors per query")
    return common.checked(options)


def _search(contender: str, rows: int, length: int, queries: int, count: int) -> dict[str, Any]:
    """In a child process, so that its peak memory is its own: search once."""
    data = Rows(rows, length, queries)
    search = _ours if contender == "ours" else _torch
    search(data.queries, [data.queries], 1)  # starts the thread pools
    started = time.perf_counter()
    indices = search(data.queries, data.chunks(), count)
    seconds = time.perf_counter() - started - data.seconds
    return {"seconds": seconds, "peak": peak_of_this_process(), "indices": indices.tolist()}


def _ours(queries: Any, chunks: Any, count: int) -> Any:
    from trainer.inference.neighbors import nearest

    return nearest(queries, chunks, count).indices


def _torch(queries: Any, chunks: Any, count: int) -> Any:
    import torch

    wanted = torch.from_numpy(queries)
    distances = torch.empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64)
    start = 0
    for chunk in chunks:
        near = torch.cdist(wanted, torch.from_numpy(chunk)).topk(min(count, len(chunk)), largest=False)
        distances = torch.cat([distances, near.values], dim=1)
        indices = torch.cat([indices, near.indices + start], dim=1)
        best = distances.topk(min(count, distances.shape[1]), largest=False)
        distances, indices = best.values, indices.gather(1, best.indices)
        start += len(chunk)
    return indices.numpy()


def _truth(options: argparse.Namespace) -> list[list[int]]:
    """Return the indices of each query's neighbors by float64 squared distance; ties go by index."""
    rows = Rows(options.rows, options.length, options.queries)
    wanted = rows.queries.astype(np.float64)
    squared = np.empty((len(wanted), options.rows))
    start = 0
    for chunk in rows.chunks():
        exact = chunk.astype(np.float64)
        for number, query in enumerate(wanted):
            squared[number, start : start + len(chunk)] = ((exact - query) ** 2).sum(axis=1)
        start += len(chunk)
    order = np.argsort(squared, axis=1, kind="stable")
    found: list[list[int]] = order[:, : options.count].tolist()
    return found


def _features(rng: np.random.Generator, count: int, length: int) -> Any:
    rows = rng.standard_normal((count, length), dtype=np.float32)
    return np.maximum(rows, 0, out=rows)


if __name__ == "__main__":
    common.finish(main)
