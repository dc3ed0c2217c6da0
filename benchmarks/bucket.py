"""Measure the time to the first training batch of a dataset in an S3 bucket, served by moto on this machine.

    python benchmarks/bucket.py --work /tmp/bucket

Makes --tars tars of 2,000 images of noise (114 MB each) and uploads them to moto's server, a single Python
process that keeps them in memory: its speed limits what is measured, and stands beside it. Then processes
open the dataset and load one batch: from the disk; from the bucket into memory; through an empty cache; and
through a full one. Each case runs --rounds times.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import common
import tiny_dataset
from common import BenchmarkError
from processes import peak_of_this_process

_SAMPLES = 2_000
_CROP = 224
_BUCKET = "benchmark"


def main() -> int:
    if task := common.child_task():
        print(json.dumps(_first(**task)))
        return 0
    options = _options()
    with common.work_folder(options.work) as work:
        common.print_facts(common.versions("alexnet-toolkit", "moto", "s3fs", "torch"))
        data = tiny_dataset.at(work, _SAMPLES * options.tars, options.tars, noise=True)
        with _server() as address:
            speed = _upload(data, address)
            runs = _measure(options, data, work)
    _report(options, runs, speed)
    common.save_json(options.json, runs=runs, bytes_per_second=speed)
    return 0


def _options() -> argparse.Namespace:
    options = common.parser(__doc__, "rounds", "work", "json")
    options.add_argument("--batch", type=int, default=128, help="samples per batch")
    options.add_argument("--tars", type=int, default=10, help="number of tars")
    return common.checked(options)


@contextmanager
def _server() -> Iterator[str]:
    """Context manager: run moto's server, and point all processes to it; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise BenchmarkError("moto's server does not answer; pip install 'moto[s3,server]'")
        yield address
    finally:
        process.kill()
        process.wait()


def _upload(data: Path, address: str) -> float:
    """Upload the dataset; return the bytes per second at which the server sends a tar to one plain client."""
    from pipeline import open_store

    urllib.request.urlopen(urllib.request.Request(f"{address}/{_BUCKET}", method="PUT")).close()
    store = open_store(f"s3://{_BUCKET}/set")
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        store.write(path.relative_to(data).as_posix(), path.read_bytes())
    tar = min(data.rglob("*.tar"))
    started = time.perf_counter()
    with urllib.request.urlopen(f"{address}/{_BUCKET}/set/{tar.relative_to(data).as_posix()}") as answer:
        size = len(answer.read())
    return size / (time.perf_counter() - started)


def _measure(options: argparse.Namespace, data: Path, work: Path) -> dict[str, list[Any]]:
    cache = work / "cache"

    def run(source: str, cache: Path | None, *, empty: bool = False) -> Any:
        if empty and cache is not None:
            common.fresh(cache)
        return common.run_child({"source": source, "cache": str(cache or ""), "batch": options.batch})

    bucket = f"s3://{_BUCKET}/set"
    parts = {
        "disk, mapped": partial(run, str(data), None),
        "bucket, into memory": partial(run, bucket, None),
        "bucket, empty cache": partial(run, bucket, cache, empty=True),
        "bucket, full cache": partial(run, bucket, cache),
    }
    return common.take_turns(parts, options.rounds, lambda name, found: f"{name}: {found['first']:.2f} s")


def _first(source: str, cache: str, batch: int) -> dict[str, float]:
    """In a child process: load a batch; return the seconds from opening the dataset, and what was fetched."""
    from pipeline import Dataset, Loader, ReadOptions, TrainView

    started = time.perf_counter()
    dataset = Dataset.open(source)
    access = ReadOptions(cache=Path(cache) if cache else None)
    with Loader(dataset, "train", TrainView(_CROP), batch, access=access) as loader:
        fetched = loader.to_fetch()
        next(iter(loader))
        seconds = time.perf_counter() - started
        size = sum(shard.bytes for shard in fetched)
        return {"first": seconds, "shards": len(fetched), "bytes": size, "peak": peak_of_this_process()}


def _report(options: argparse.Namespace, runs: dict[str, list[Any]], speed: float) -> None:
    print(
        f"Medians of {options.rounds} rounds (minimum–maximum), each a new process, without imports; batch "
        f"{options.batch}, {options.tars} shards; the server sends {speed / 1e6:,.0f} MB/s to one client\n"
    )
    header = ("", "first batch, s", "shards fetched", "MB", "peak MB")
    rows = []
    for name, found in runs.items():
        seconds = common.spread([run["first"] for run in found], 2)
        counts = (f"{found[0]['shards']}", f"{found[0]['bytes'] / 1e6:,.0f}")
        rows.append((name, seconds, *counts, f"{max(run['peak'] for run in found) / 1e6:,.0f}"))
    print(common.markdown(header, rows))


if __name__ == "__main__":
    common.finish(main)
