"""Measure the memory of one long preparation: RSS of the command and of each worker, once a second.

    python benchmarks/soak.py --minutes 10 --work /tmp/soak --chart soak.png

A short job first measures the throughput; from it, the number of images is chosen so that the long job takes
about --minutes. The images are hard links to few files; --hostile adds broken ones. Prints RSS after a tenth,
half and all of the job, and the slope after the first tenth, which is zero where memory stays flat.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path

import common
import memory
import processes
import psutil
from common import BenchmarkError
from memory import Course, Trace

_SAMPLE_SECONDS = 1.0
_COURSE = Course("seconds", _SAMPLE_SECONDS, ("hour", 3600.0), ("minutes", 60.0))
_TRIAL_IMAGES = 2000
# Safety factor of the estimated disk space, and bytes of a directory entry.
_MARGIN = 1.1
_ENTRY_BYTES = 300


def main() -> int:
    options = _options()
    with common.work_folder(options.work) as work:
        common.print_facts(
            common.versions("alexnet-toolkit", "simplejpeg", "opencv-python-headless", "numpy")
        )
        originals = common.copy_originals(
            common.jpegs_below(options.source), common.fresh(work / "originals")
        )
        throughput, size = _trial(originals, options, work)
        images = options.images or round(throughput * options.minutes * 60)
        _check_room(work, images, size)
        source = common.fresh(work / "images")
        common.repeat(originals, source, images)
        hostile = _add_hostile(options, work, source, images) if options.hostile else 0
        print(
            f"one job of {images + hostile:,} images ({len(originals)} JPEGs under distinct names, "
            f"{hostile:,} of them hostile), {options.workers} workers, for some {options.minutes:g} minutes\n"
        )
        traces, wall, output = _watch(_command(source, work / "out", options))
        print(output.strip() + "\n")
        print(f"{wall / 60:.1f} minutes, {(images + hostile) / wall:,.0f} images/s; RSS in MB\n")
        print(memory.table(traces, wall, _COURSE, "process"))
        if options.csv:
            memory.write_csv(traces, options.csv, "process", _COURSE)
        figures = {trace.name: memory.figures(trace, wall, _COURSE) for trace in traces}
        samples = [asdict(trace) for trace in traces]
        common.save_json(
            options.json, wall_seconds=wall, images=images, hostile=hostile, megabytes=figures, traces=samples
        )
        if options.chart:
            memory.draw(traces, wall, options.chart, "Memory of one preparation", _COURSE)
        for name in ("originals", "hostile", "images", "out"):
            common.fresh(work / name)
    return 0


def _options() -> argparse.Namespace:
    options = common.parser(__doc__, "source", "work", "chart", "csv", "json")
    options.add_argument("--minutes", type=float, default=10.0, help="duration of the job")
    options.add_argument("--images", type=int, help="number of images to prepare, instead of --minutes")
    options.add_argument("--workers", type=int, default=common.cores(), help="number of worker processes")
    options.add_argument("--hostile", type=Path, help="folder of broken or unusual image files to add")
    options.add_argument(
        "--hostile-share", type=float, default=0.01, help="number of hostile files as a share of the images"
    )
    given = common.checked(options)
    if given.hostile_share > 1:
        options.error("--hostile-share must be at most 1")
    return given


def _command(source: Path, out: Path, options: argparse.Namespace) -> list[str]:
    limit = min(1.0, 2 * options.hostile_share) if options.hostile else 0.01
    common.fresh(out)
    flags = ["--workers", str(options.workers), "--max-bad", f"{limit:g}"]
    return [common.tool("alexnet-prep"), "shard", str(source), str(out), *flags]


def _trial(originals: list[Path], options: argparse.Namespace, work: Path) -> tuple[float, float]:
    """Run a short job; return its images per second and its output bytes per image."""
    source = common.fresh(work / "images")
    common.repeat(originals, source, _TRIAL_IMAGES)
    usage = processes.measure(_command(source, work / "out", options))
    written = sum(path.stat().st_size for path in (work / "out").rglob("*") if path.is_file())
    throughput = _TRIAL_IMAGES / usage.wall
    print(f"trial: {_TRIAL_IMAGES:,} images in {usage.wall:.1f} s, {throughput:,.0f} images/s")
    return throughput, written / _TRIAL_IMAGES


def _check_room(work: Path, images: int, size: float) -> None:
    """Raise `BenchmarkError` where the job's output and links would not fit on the disk."""
    needed = images * (size + _ENTRY_BYTES) * _MARGIN
    free = shutil.disk_usage(work).free
    if needed > free:
        raise BenchmarkError(
            f"{images:,} images need {needed / 1e9:.1f} GB in {work}, which has {free / 1e9:.1f} GB "
            "free; give fewer --minutes, or another --work"
        )


def _add_hostile(options: argparse.Namespace, work: Path, source: Path, images: int) -> int:
    """Link the hostile files in turn into the existing class folders; return the number of links."""
    files = sorted(path for path in options.hostile.iterdir() if path.is_file())
    if not files:
        raise BenchmarkError(f"no files in {options.hostile}; name a folder of broken images")
    copies = common.fresh(work / "hostile")
    copies.mkdir()
    for path in files:
        shutil.copyfile(path, copies / path.name)
    folders = cycle(sorted(path for path in source.iterdir() if path.is_dir()))
    count = max(1, round(images * options.hostile_share))
    for number, (path, folder) in enumerate(islice(zip(cycle(files), folders, strict=False), count)):
        (folder / f"hostile_{number:06d}_{path.name}").hardlink_to(copies / path.name)
    return count


def _watch(command: list[str]) -> tuple[list[Trace], float, str]:
    """Run a job and sample the RSS of its processes; return traces, seconds and output."""
    traces: dict[int, Trace] = {}
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        job = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while job.poll() is None:
                _sample(job.pid, time.monotonic() - started, traces)
                time.sleep(_SAMPLE_SECONDS - (time.monotonic() - started) % _SAMPLE_SECONDS)
        except BaseException:
            processes.end_tree(job.pid)
            raise
        wall = time.monotonic() - started
        log.seek(0)
        output = log.read().decode(errors="replace")
    if job.returncode:
        raise BenchmarkError(f"the job failed with exit code {job.returncode}:\n{output[-2000:]}")
    return _named(traces.values()), wall, output


def _sample(pid: int, now: float, traces: dict[int, Trace]) -> None:
    for process in processes.process_tree(pid):
        try:
            rss = process.memory_info().rss
            tracker = any("resource_tracker" in part for part in process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        trace = traces.setdefault(process.pid, Trace("worker"))
        # Between fork and exec a process shows its parent's command line, so the latest sample decides.
        trace.name = "command" if process.pid == pid else "resource tracker" if tracker else "worker"
        trace.add(now, rss)


def _named(traces: Iterable[Trace]) -> list[Trace]:
    """Return the traces of the command and its numbered workers, without traces of one sample."""
    kept = [trace for trace in traces if len(trace.rss) >= 2]
    workers = [trace for trace in kept if trace.name == "worker"]
    for number, trace in enumerate(workers, start=1):
        trace.name = f"worker {number}"
    return sorted(kept, key=lambda trace: (trace.name != "command", trace.name == "resource tracker"))


if __name__ == "__main__":
    common.finish(main)
