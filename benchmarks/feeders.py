"""Feeders that loader.py compares: how each is started, measured and stopped."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from common import HERE, BenchmarkError, peer_environment
from processes import end_tree

KINDS = ("ours", "dali", "webdataset", "spdl", "ffcv", "limit")


@dataclass(frozen=True)
class Feeder:
    """A loader, or a part of one, that is measured.

    Attributes:
        kind: One of KINDS.
        name: Name in tables.
        output: Type of the pixels in its batches, for tables: "float32" or "bytes".
        script: Script in this folder that runs it.
        python: Interpreter of its environment.
        variant: Value of the script's --kind; "" for none.
    """

    kind: str
    name: str
    output: str
    script: str
    python: str = sys.executable
    variant: str = ""


@dataclass
class Setting:
    """What one table compares.

    Attributes:
        data: Folder of the dataset.
        original: Whether images are stored in their original size.
        augmentation: "paper" or "random-resized-crop".
        threads: Number of threads or worker processes.
        batch: Images per batch.
    """

    data: Path
    original: bool
    augmentation: str
    threads: int
    batch: int


@dataclass
class Row:
    """Results of a feeder at a setting, one value per round: images/s, and CPU microseconds per image."""

    feeder: Feeder
    setting: Setting
    throughputs: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


OURS = Feeder("ours", "ours", "float32", "feeder_ours.py")
DALI = Feeder("dali", "ours, DALI on the CPU", "float32", "feeder_ours.py", variant="dali")
WEBDATASET = Feeder("webdataset", "webdataset + Pillow", "float32", "feeder_webdataset.py")
LIMIT = Feeder("limit", "libjpeg-turbo, whole decode", "bytes", "feeder_limit.py")


def all_feeders(kinds: Sequence[str], work: Path) -> tuple[list[Feeder], list[str]]:
    """Return the feeders of the requested kinds that run here, and notes on why the others do not."""
    found = [feeder for feeder in (OURS, DALI, WEBDATASET) if feeder.kind in kinds]
    skipped = []
    for kind, name, extra in (("spdl", "SPDL", ()), ("ffcv", "FFCV", ("ffcv==1.0.2",))):
        if kind not in kinds:
            continue
        try:
            venv = peer_environment(work / f"{kind}-venv", f"requirements-{kind}.txt", kind, *extra)
            found.append(Feeder(kind, name, "bytes", f"feeder_{kind}.py", str(venv / "bin" / "python")))
        except BenchmarkError as error:
            skipped.append(f"{name}: {error}")
    return [*found, *([LIMIT] if "limit" in kinds else [])], skipped


def can(feeder: Feeder, setting: Setting) -> bool:
    """Whether a feeder supports the setting: FFCV has no fixed-size crop of images of different sizes."""
    return not (feeder.kind == "ffcv" and setting.original and setting.augmentation == "paper")


class Running:
    """The process of a feeder at a setting, warmed up and waiting for a round.

    Raises:
        BenchmarkError: The process failed; the message has the end of its standard error.
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        feeder, setting = row.feeder, row.setting
        command = [feeder.python, str(HERE / feeder.script), str(setting.data)]
        command += ["--augmentation", setting.augmentation, "--threads", str(setting.threads)]
        command += ["--batch", str(setting.batch), *(["--original"] if setting.original else [])]
        command += ["--kind", feeder.variant] if feeder.variant else []
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process runs
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._expect("ready")

    def measure(self, images: int) -> float:
        """Run a round of at least `images` images, append its results to the row, and return its images/s."""
        assert self._process.stdin is not None
        print(images, file=self._process.stdin, flush=True)
        self._expect("begun")
        before = self._cpu_seconds()
        try:
            found = json.loads(self._read_line())
        except json.JSONDecodeError:
            raise self._failed() from None
        self.row.throughputs.append(found["images"] / found["seconds"])
        self.row.cpu.append((self._cpu_seconds() - before) / found["images"] * 1e6)
        return self.row.throughputs[-1]

    def end(self) -> None:
        """Kill the process and its children."""
        end_tree(self._process.pid)
        self._process.communicate()
        self._errors.close()

    def _expect(self, word: str) -> None:
        if self._read_line() != word:
            raise self._failed()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _cpu_seconds(self) -> float:
        root = psutil.Process(self._process.pid)
        times = [p.cpu_times() for p in (root, *root.children(recursive=True))]
        return sum(t.user + t.system for t in times)

    def _failed(self) -> BenchmarkError:
        end_tree(self._process.pid)
        self._process.communicate()
        self._errors.seek(0)
        return BenchmarkError(f"{self.row.feeder.name} failed: {self._errors.read().strip()[-1500:]}")


@contextmanager
def running(rows: Sequence[Row]) -> Iterator[list[Running]]:
    """Start the feeders of a setting, yield their processes, and end them all."""
    started: list[Running] = []
    try:
        for row in rows:
            started.append(Running(row))
        yield started
    finally:
        for each in started:
            each.end()
