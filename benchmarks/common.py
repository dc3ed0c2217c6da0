"""Shared by the benchmarks: source images, child processes, rounds, the machine, tables and charts."""

import argparse
import errno
import io
import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar, cast

import psutil

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
CHILD = "--child"
"""Argument with which a script runs itself again; see `run_child`."""

# Okabe and Ito's colors: distinguishable with any kind of color vision, and in gray.
BLUE, ORANGE, GREEN, VERMILION, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", "#F0E442", "#000000")

_JPEG_SUFFIXES = frozenset([".jpg", ".jpeg"])

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


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


def tar_bytes(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    """Return a tar of name → content; `mode` is that of `tarfile.open`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def prepare(source: Path, work: Path, out: Path, images: int, *options: str) -> Path:
    """Prepare `images` images like those below `source` with `alexnet-prep shard`, and return `out`.

    A dataset that is at `out` already is used as it is.
    """
    if not (out / "manifest.json").is_file():
        originals = copy_originals(jpegs_below(source), fresh(work / "originals"))
        repeat(originals, fresh(work / "images"), images)
        run([tool("alexnet-prep"), "shard", str(work / "images"), str(out), *options])
        fresh(work / "images")
        fresh(work / "originals")
    return out


def run(command: Sequence[str], data: str | None = None) -> str:
    """Run a command to its end and return its standard output; `data` is its standard input.

    Raises:
        BenchmarkError: The command failed; the message has the end of its output.
    """
    done = subprocess.run(command, input=data, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = f"{done.stdout}{done.stderr}".strip()[-2000:]
        raise BenchmarkError(f"exit code {done.returncode} of: {shlex.join(command)}\n{tail}")
    return done.stdout


def run_child(task: Any) -> Any:
    """Run this script in another process, where `child_task` gives the task; return its last line's JSON."""
    return json.loads(run([sys.executable, sys.argv[0], CHILD], json.dumps(task)).splitlines()[-1])


def child_task() -> Any:
    """Return the task that `run_child` gave to this process; None where it is not such a process."""
    return json.load(sys.stdin) if sys.argv[1:] == [CHILD] else None


def peer_environment(venv: Path, requirements: str, module: str, *unisolated: str) -> Path:
    """Return the folder of a peer's virtual environment, which is made on first use.

    Args:
        venv: Folder of the environment.
        requirements: File in this folder with its packages.
        module: Module that must be importable in it.
        unisolated: Packages that are built against those already installed.

    Raises:
        BenchmarkError: It cannot be installed; the message has the end of pip's output.
    """
    if (venv / "complete").is_file():
        return venv
    print(f"making {venv} (downloads, and builds where it must) ...", file=sys.stderr)
    python = str(venv / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet"]
    run([sys.executable, "-m", "venv", "--clear", str(venv)])
    run([*pip, "-r", str(HERE / requirements)])
    if unisolated:
        run([*pip, "--no-build-isolation", "--no-deps", *unisolated])
    run([python, "-c", f"import {module}"])
    (venv / "complete").touch()
    return venv


def take_turns(
    parts: Mapping[Key, Callable[[], Result]], rounds: int, show: Callable[[Key, Result], str] | None = None
) -> dict[Key, list[Result]]:
    """Call each part once a round, every other round in reverse order, so that drift favors none.

    Args:
        parts: Name → function that measures it once.
        rounds: Number of rounds.
        show: Describes a result for a line on standard error; None prints nothing.

    Returns:
        Name → results, one a round.
    """
    found: dict[Key, list[Result]] = {name: [] for name in parts}
    for number in range(1, rounds + 1):
        for name in parts if number % 2 else reversed(parts):
            found[name].append(parts[name]())
            if show:
                print(f"round {number}: {show(name, found[name][-1])}", file=sys.stderr)
    return found


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


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Format the median of values, with their minimum and maximum."""
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def paired(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios within each round, where the machine's speed drifts little."""
    return median(a / b for a, b in zip(above, below, strict=True))


def judged(met: bool) -> str:
    """Return "met" or "MISSED", for a target."""
    return "met" if met else "MISSED"


def save_json(path: Path | None, **facts: Any) -> None:
    """Write facts with the command line and the machine to a JSON file; nothing where `path` is None."""
    if path is not None:
        path.write_text(json.dumps({"command": command_line(), "machine": machine()} | facts, indent=1))


def draw_bars(axes: Any, bars: Sequence[tuple[str, Sequence[float], str]], title: str) -> None:
    """Draw a horizontal bar of each (name, images/s of each round, color), with the range of the rounds."""
    for number, (_, values, color) in enumerate(bars):
        middle = median(values)
        axes.barh(number, middle, color=color, height=0.65)
        limits = [[middle - min(values)], [max(values) - middle]]
        axes.errorbar(middle, number, xerr=limits, color="black", capsize=3, linewidth=1)
        place = (max(values), number)
        axes.annotate(f"{middle:,.0f}", place, xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_title(title, loc="left")
    axes.set_xlabel("images/s: median of the rounds, with minimum and maximum")


def new_axes(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    """Return a Matplotlib figure and its axes, an array of `panels`, without top and right frame.

    Args:
        width, height: Size of the figure in inches.
        panels: Number of axes, one below the other.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(panels, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, axes[:, 0]


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


_SHARED: dict[str, dict[str, Any]] = {
    "source": {"type": Path, "help": "folder with JPEGs in class folders"},
    "rounds": {"type": int, "default": 3, "help": "number of rounds; in each, everything is measured once"},
    "work": {"type": Path, "help": "folder for what is made, which is kept; a temporary one if not given"},
    "chart": {"type": Path, "help": "draw a chart to this PNG file"},
    "csv": {"type": Path, "help": "write every sample to this file"},
    "json": {"type": Path, "help": "write every measurement to this file"},
}


def parser(description: str | None, *shared: str) -> argparse.ArgumentParser:
    """Return an argument parser whose help shows the script's docstring and the defaults.

    Args:
        description: Docstring of the script.
        shared: Names of options that several scripts have: source, rounds, work, chart, csv, json.
    """
    options = argparse.ArgumentParser(description=description, formatter_class=_Help)
    for name in shared:
        options.add_argument(f"--{name}", **_SHARED[name])
    if "source" in shared:
        options.set_defaults(source=test_data() / "imagenet-sample")
    return options


def checked(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; refuse numbers that are not positive, and a --chart that cannot be written."""
    given = options.parse_args()
    for name, value in vars(given).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool) and number <= 0:
                options.error(f"--{name.replace('_', '-')} must be above 0")
    chart = vars(given).get("chart")
    if chart is not None and (chart.suffix != ".png" or not chart.resolve().parent.is_dir()):
        options.error(f"--chart {chart}: name a .png file in a folder that exists")
    return given


def finish(main: Any) -> None:
    """Run a script's `main` and exit with its code; print a `BenchmarkError` as one message, with code 1."""
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)  # keep order with standard error
    try:
        sys.exit(main())
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
