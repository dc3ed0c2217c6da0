"""Contenders of prep.py: the command of each, and how it differs from the others."""

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from candidates import QUALITY, SIZE
from common import HERE, BenchmarkError, peer_environment, tool
from processes import Usage, measure

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
        kind: One of "ours", "keep-original", "pillow", "img2dataset", "limit".
        name: Name in tables.
        workers: Number of worker processes.
        note: How it differs from the other contenders.
    """

    kind: str
    name: str
    workers: int
    note: str

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
        workers, sizes = str(self.workers), ["--size", str(SIZE), "--quality", str(QUALITY)]
        source, target = str(images.source), str(out)
        if self.kind == "pillow":
            script = str(HERE / "pillow_loop.py")
            return measure([sys.executable, script, source, target, *sizes, "--processes", workers])
        options = sizes if self.kind == "ours" else ["--keep-original"]
        return measure([tool("alexnet-prep"), "shard", source, target, *options, "--workers", workers])


@dataclass
class Img2dataset(Contender):
    """The `img2dataset` command of the environment `venv`, on file:// URLs."""

    venv: Path = Path()

    def run(self, images: Images, out: Path) -> Usage:
        """See `Contender.run`."""
        table = out.with_suffix(".csv")
        _write_urls(images.source, table)
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
        usage = measure([sys.executable, str(HERE / "limit.py"), str(table)])
        table.unlink()
        loop = json.loads(usage.output.splitlines()[-1])
        self.mean_bytes = loop["bytes"] / images.count
        return Usage(loop["wall"], loop["cpu"], usage.peak, usage.output)


def contenders(
    kinds: Sequence[str], workers: Sequence[int], work: Path, chain: tuple[str, ...]
) -> tuple[list[Contender], list[str]]:
    """Return the contenders of the requested kinds that can run here, and notes on why others cannot."""
    most = max(workers)
    venv = work / "img2dataset-venv"
    skipped: list[str] = []
    if "img2dataset" in kinds:
        try:
            if sys.version_info >= (3, 13):
                raise BenchmarkError("needs Python 3.12 or older, which has the module imghdr")
            peer_environment(venv, "requirements-img2dataset.txt", "img2dataset")
        except BenchmarkError as error:
            skipped.append(f"img2dataset: {error}")
            kinds = [kind for kind in kinds if kind != "img2dataset"]
    checks = "strict decoding, statistics, checksums, fsync"
    kept = "stores the untouched files; decodes each to check and measure it"
    peer = "grays stay gray; a JSON member and a Parquet row for each"
    limit = "decode, resize and encode alone: " + " + ".join(chain)
    found: list[Contender] = [
        *(Contender("ours", "alexnet-prep shard", n, checks) for n in workers),
        Contender("keep-original", "alexnet-prep shard --keep-original", most, kept),
        Contender("pillow", "Pillow loop", most, "bicubic; no check, no statistics"),
        Img2dataset("img2dataset", "img2dataset, file://", most, peer, venv=venv),
        *(Limit("limit", "limit", n, limit, chain=chain) for n in workers),
    ]
    return [contender for contender in found if contender.kind in kinds], skipped


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


def _write_urls(source: Path, table: Path) -> None:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    labels = {name: label for label, name in enumerate(sorted({path.parent.name for path in files}))}
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("url", "label"))
        rows.writerows((path.resolve().as_uri(), labels[path.parent.name]) for path in files)
