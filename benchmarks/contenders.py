"""Contenders of prep.py: the command of each, and how it differs from the others."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
from candidates import QUALITY, SIZE
from common import BenchmarkError, tool
from processes import Usage, end_tree, measure

_HERE = Path(__file__).parent
# Threads of each img2dataset process that fetch files; the default of 256 is meant for the internet.
_IMG2DATASET_THREADS = 4


@dataclass(frozen=True)
class Images:
    """Source images: `count` files `source`/CLASS/NAME, which are hard links to `originals`."""

    source: Path
    originals: tuple[Path, ...]
    count: int


@dataclass
class Contender:
    """A way to prepare images.

    Attributes:
        kind: One of "ours", "keep-original", "pillow", "img2dataset", "http", "limit".
        name: Name in tables.
        workers: Number of worker processes.
        note: How it differs from the other contenders.
        server_cpu: CPU seconds per image of the HTTP server, one value per round; empty without a server.
    """

    kind: str
    name: str
    workers: int
    note: str
    server_cpu: list[float] = field(default_factory=list)

    @property
    def writes_squares(self) -> bool:
        """Whether each output is a square image of the requested JPEG quality."""
        return self.kind != "keep-original"

    @property
    def writes(self) -> bool:
        """Whether it writes any output."""
        return self.kind != "limit"

    def run(self, images: Images, out: Path) -> Usage:
        """Run the whole command on `images`; it writes to `out`, a folder that does not exist yet."""
        workers = str(self.workers)
        sizes = ["--size", str(SIZE), "--quality", str(QUALITY)]
        source, target = str(images.source), str(out)
        if self.kind == "ours":
            return measure([tool("alexnet-prep"), "shard", source, target, *sizes, "--workers", workers])
        if self.kind == "keep-original":
            prep = [tool("alexnet-prep"), "shard", source, target, "--keep-original"]
            return measure([*prep, "--workers", workers])
        if self.kind == "pillow":
            script = str(_HERE / "pillow_loop.py")
            return measure([sys.executable, script, source, target, *sizes, "--processes", workers])
        raise ValueError(self.kind)


@dataclass
class Img2dataset(Contender):
    """The `img2dataset` command of the environment `venv`, on file:// URLs or those of an HTTP server."""

    venv: Path = Path()

    def run(self, images: Images, out: Path) -> Usage:
        """See `Contender.run`; the CPU seconds of the HTTP server are kept separately in `server_cpu`."""
        table = out.with_suffix(".csv")
        if self.kind == "img2dataset":
            _write_urls(images.source, table, images.source.resolve().as_uri())
            return self._measure(images, table, out)
        with _server(images.source) as (url, process):
            _write_urls(images.source, table, url)
            usage = self._measure(images, table, out)
            times = process.cpu_times()
            self.server_cpu.append((times.user + times.system) / images.count)
        return usage

    def _measure(self, images: Images, table: Path, out: Path) -> Usage:
        options = {
            "url_list": table,
            "input_format": "csv",
            "url_col": "url",
            "caption_col": "label",
            "output_folder": out,
            "output_format": "webdataset",
            "image_size": SIZE,
            "resize_mode": "center_crop",
            "downscale_interpolation": "area",
            "upscale_interpolation": "cubic",
            "encode_quality": QUALITY,
            "processes_count": self.workers,
            "thread_count": _IMG2DATASET_THREADS,
            # One shard per process: img2dataset replaces a process after five shards, which takes seconds.
            "number_sample_per_shard": -(-images.count // self.workers),
            "extract_exif": False,
            "compute_hash": None,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        # Else its image library checks the internet for a newer version at every start.
        usage = measure([str(self.venv / "bin" / "img2dataset"), *flags], {"NO_ALBUMENTATIONS_UPDATE": "1"})
        table.unlink()
        return usage


@dataclass
class Limit(Contender):
    """Decoding, resizing and encoding only, by the candidates named in `chain`; see limit.py."""

    chain: tuple[str, ...] = ()
    mean_bytes: float = 0.0

    def run(self, images: Images, out: Path) -> Usage:
        """See `Contender.run`; wall and CPU time are the loop's, memory is that of the whole command."""
        task = {
            "files": [str(path) for path in images.originals],
            "processes": self.workers,
            "images": images.count,
            "chain": self.chain,
        }
        table = out.with_suffix(".json")
        table.write_text(json.dumps(task))
        usage = measure([sys.executable, str(_HERE / "limit.py"), str(table)])
        table.unlink()
        loop = json.loads(usage.output.splitlines()[-1])
        self.mean_bytes = loop["bytes"] / images.count
        return Usage(loop["wall"], loop["cpu"], usage.peak, usage.output)


def contenders(
    kinds: Sequence[str], workers: Sequence[int], work: Path, chain: tuple[str, ...]
) -> tuple[list[Contender], list[str]]:
    """Return the contenders of the requested kinds that can run here, and notes on why others cannot."""
    most = max(workers)
    found: list[Contender] = []
    skipped: list[str] = []
    if "ours" in kinds:
        found += [
            Contender("ours", "alexnet-prep shard", n, "strict decoding, statistics, checksums, fsync")
            for n in workers
        ]
    if "keep-original" in kinds:
        if "--keep-original" in subprocess.check_output([tool("alexnet-prep"), "shard", "--help"], text=True):
            note = "stores the untouched files; decodes each to check and measure it"
            found.append(Contender("keep-original", "alexnet-prep shard --keep-original", most, note))
        else:
            skipped.append("--keep-original: this release of alexnet-prep does not have it")
    if "pillow" in kinds:
        found.append(Contender("pillow", "Pillow loop", most, "bicubic; no check, no statistics"))
    for kind in ("img2dataset", "http"):
        if kind in kinds:
            _add_img2dataset(kind, most, work, found, skipped)
    if "limit" in kinds:
        note = "decode, resize and encode alone: " + " + ".join(chain)
        found += [Limit("limit", "limit", n, note, chain=chain) for n in workers]
    return found, skipped


def _add_img2dataset(kind: str, workers: int, work: Path, found: list[Contender], skipped: list[str]) -> None:
    name, note = {
        "img2dataset": ("img2dataset, file://", "grays stay gray; a JSON member and a Parquet row for each"),
        "http": ("img2dataset, loopback", "as above, and HTTP; the server's CPU seconds are not in its own"),
    }[kind]
    try:
        venv = _img2dataset_venv(work)
    except BenchmarkError as error:
        skipped.append(f"{name}: {error}")
        return
    found.append(Img2dataset(kind, name, workers, note, venv=venv))


def img2dataset_versions(work: Path) -> str:
    """Return the versions of img2dataset and its libraries as text; "" where it is not installed."""
    venv = work / "img2dataset-venv"
    if not (venv / "complete").is_file():
        return ""
    listed = subprocess.check_output([str(venv / "bin" / "pip"), "list", "--format=freeze"], text=True)
    wanted = ("img2dataset", "opencv-python-headless", "albumentations", "webdataset")
    return ", ".join(
        line.replace("==", " ") for line in listed.splitlines() if line.partition("==")[0] in wanted
    )


def _img2dataset_venv(work: Path) -> Path:
    venv = work / "img2dataset-venv"
    if (venv / "complete").is_file():
        return venv
    if sys.version_info >= (3, 13):
        raise BenchmarkError(
            "needs Python 3.12 or older (it imports imghdr); run the benchmark with such a version"
        )
    print(f"making {venv} for img2dataset (downloads some 200 MB) ...", file=sys.stderr)
    shutil.rmtree(venv, ignore_errors=True)
    requirements = str(_HERE / "requirements-img2dataset.txt")
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", requirements],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"cannot be installed: {(done.stderr or done.stdout).strip()[-300:]}")
    (venv / "complete").touch()
    return venv


def _write_urls(source: Path, table: Path, base_url: str) -> None:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    labels = {name: label for label, name in enumerate(sorted({path.parent.name for path in files}))}
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("url", "label"))
        rows.writerows(
            (f"{base_url}/{quote(path.relative_to(source).as_posix())}", labels[path.parent.name])
            for path in files
        )


@contextmanager
def _server(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run the standard library's HTTP server on loopback in its own process; yield its URL and process."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "http.server",
        "--bind",
        "127.0.0.1",
        "--directory",
        str(folder),
        "0",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        first_line = server.stdout.readline()
        port = re.search(r"port (\d+)", first_line)
        if port is None:
            raise BenchmarkError(f"http.server did not start: {first_line!r}")
        yield f"http://127.0.0.1:{port.group(1)}", psutil.Process(server.pid)
    finally:
        end_tree(server.pid)
        server.wait()
