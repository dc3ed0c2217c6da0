"""Shared by the benchmarks: source images, facts about the machine, tables and charts."""

import argparse
import errno
import io
import os
import platform
import random
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]

# Okabe and Ito's colors: distinguishable with any kind of color vision, and in gray.
BLUE, ORANGE, GREEN, VERMILION, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", "#F0E442", "#000000")

_JPEG_SUFFIXES = frozenset([".jpg", ".jpeg"])


class BenchmarkError(Exception):
    """Raised where a benchmark cannot run; the message says why."""


def test_data() -> Path:
    """Return the folder of real images that the tests use too; ALEXNET_TEST_DATA overrides it."""
    return Path(os.environ.get("ALEXNET_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def jpegs_below(folder: Path) -> list[Path]:
    """Return every JPEG below `folder`, sorted; the name of its parent folder is its class.

    Raises:
        BenchmarkError: There are no JPEGs.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _JPEG_SUFFIXES)
    if not found:
        raise BenchmarkError(f"no JPEGs below {folder}; name a folder of class folders with --source")
    return found


def copy_originals(files: Sequence[Path], folder: Path) -> list[Path]:
    """Copy images to `folder`/CLASS/NAME, so that hard links to them stay on one file system.

    Copying also leaves them in the page cache.
    """
    copies = []
    for path in files:
        copy = folder / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        copies.append(copy)
    return copies


def repeat(originals: Sequence[Path], folder: Path, count: int) -> list[Path]:
    """Make `count` images with distinct names in `folder`/CLASS, as hard links to the originals.

    Each original is linked equally often; a remainder is distributed at random with a fixed seed.
    """
    whole, rest = divmod(count, len(originals))
    extra = set(random.Random(0).sample(range(len(originals)), rest))
    made = []
    for number, original in enumerate(originals):
        target = folder / original.parent.name
        target.mkdir(parents=True, exist_ok=True)
        first: Path = original
        for again in range(whole + (number in extra)):
            path = target / f"{original.stem}_{again:06d}{original.suffix}"
            first = _link(first, path)
            made.append(path)
    return made


def _link(original: Path, path: Path) -> Path:
    """Make `path` a hard link to `original`; return the file that further links should point to."""
    try:
        path.hardlink_to(original)
    except OSError as error:
        if error.errno != errno.EMLINK:  # ext4 allows 65,000 links to a file
            raise
        shutil.copyfile(original, path)
        return path
    return original


@contextmanager
def work_folder(wanted: Path | None) -> Iterator[Path]:
    """Yield the folder `wanted`, or a temporary one that is removed afterwards where it is None."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="alexnet-benchmark-") as folder:
        yield Path(folder)


def fresh(folder: Path) -> Path:
    """Remove `folder` with its contents, and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def forget_pages(folder: Path) -> None:
    """Write the files below `folder` to the disk and drop them from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def tool(name: str) -> str:
    """Return the path of a command of this environment.

    Raises:
        BenchmarkError: The command is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise BenchmarkError(f"{name} is not installed here; run: pip install -e '{REPOSITORY}[dev]'")
    return found


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Describe the machine and its load: measurements mean little on a busy machine."""
    load = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    return {
        "processor": f"{_processor()}, {cores()} cores usable of {os.cpu_count()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load before (1, 5, 15 min)": load,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command_line() -> str:
    """Return the command line of this script, to print beside its results."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(REPOSITORY) if script.is_relative_to(REPOSITORY) else script
    return shlex.join(["python", str(shown), *sys.argv[1:]])


def print_facts(packages: dict[str, str]) -> None:
    """Print the command line, the machine and the package versions."""
    print(f"$ {command_line()}\n")
    for name, text in machine().items():
        print(f"{name}: {text}")
    print("versions: " + ", ".join(f"{name} {text}" for name, text in packages.items()) + "\n")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table; the first column is left-aligned text, the others right-aligned numbers."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        figures = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "| " + " | ".join([row[0].ljust(widths[0]), *figures]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def new_axes(width: float, height: float) -> tuple[Any, Any]:
    """Return a Matplotlib figure and axes of `width` × `height` inches, without top and right frame.

    Raises:
        BenchmarkError: Matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise BenchmarkError("a chart needs Matplotlib; run: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    return pyplot.subplots(figsize=(width, height), layout="constrained")


def check_chart(path: Path | None) -> None:
    """Check before measuring that a chart can be drawn; None is accepted.

    Raises:
        BenchmarkError: Matplotlib is not installed, or the path is not a .png file in an existing folder.
    """
    if path is None:
        return
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise BenchmarkError("--chart needs Matplotlib; run: pip install matplotlib")
    if path.suffix != ".png" or not path.resolve().parent.is_dir():
        raise BenchmarkError(f"--chart {path}: name a .png file in a folder that exists")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return an argument parser whose help shows the script's docstring and the defaults."""
    return argparse.ArgumentParser(description=description, formatter_class=_Help)


def finish(main: Any) -> None:
    """Run a script's `main` and exit with its code; print a `BenchmarkError` as one message, with code 1."""
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)  # keep order with standard error
    try:
        sys.exit(main())
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
