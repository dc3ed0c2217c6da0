"""Buckets for tests: upload a folder; start the emulator of Google Cloud Storage."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.storage.open import open_store


def upload(folder: Path, url: str) -> None:
    """Copy every file below a folder to a URL."""
    store = open_store(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.write(path.relative_to(folder).as_posix(), path.read_bytes())


@contextmanager
def start_gcs(bucket: str) -> Iterator[str]:
    """Context manager: run the emulator in a process of its own, with an empty bucket; yield its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    emulator = Path(sys.executable).with_name("gcp-storage-emulator")
    process = subprocess.Popen(
        [emulator, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    request = urllib.request.Request(
        f"{address}/storage/v1/b?project=any",
        json.dumps({"name": bucket}).encode(),
        {"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(request).close()
            break
        except OSError:
            assert process.poll() is None, "the emulator ended"
            assert time.monotonic() < deadline, "the emulator does not answer"
            time.sleep(0.1)
    try:
        yield address
    finally:
        process.kill()
        process.wait()
