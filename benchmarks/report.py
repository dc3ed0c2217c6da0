"""Report of prep.py: table, target ratios, chart, and every measurement as JSON."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, cast

import common
import outputs
import processes
from candidates import QUALITY, SIZE
from contenders import Contender, Limit
from limit import Timing
from processes import Usage

# Number of images of a job whose time is nearly start-up time only.
FEW = 40


@dataclass
class Row:
    """Measurements of a contender: one run on FEW images, and one on all images in each round."""

    contender: Contender
    few: Usage
    rounds: list[Usage]
    output: outputs.Output | None

    def throughputs(self, images: int) -> list[float]:
        """Return the images per second of each round."""
        return [images / usage.wall for usage in self.rounds]

    def cpu(self, images: int) -> float:
        """Return the CPU seconds per image, the median of the rounds."""
        return median(usage.cpu for usage in self.rounds) / images

    def cpu_without_start(self, images: int) -> float:
        """Return the CPU seconds per image without start-up; the limit has no start-up."""
        if not self.contender.writes:
            return self.cpu(images)
        return (self.cpu(images) * images - self.few.cpu) / (images - FEW)

    def throughput_without_start(self, images: int) -> float:
        """Return the images per second of the median round without start-up; the limit has no start-up."""
        wall = median(usage.wall for usage in self.rounds)
        if not self.contender.writes:
            return images / wall
        return (images - FEW) / max(wall - self.few.wall, 1e-9)


def show(rows: list[Row], images: int, rounds: int, peer: str) -> list[str]:
    """Print the report; return the problems that make contenders not comparable."""
    ours = _row(rows, "ours", max(row.contender.workers for row in rows))
    print(f"Medians of {rounds} rounds (minimum–maximum); memory is {processes.memory_kind()}\n")
    print(common.markdown(_HEADER, [_cells(row, images, ours) for row in rows]) + "\n")
    problems = []
    for row in rows:
        c = row.contender
        print(f"{c.name}, {c.workers}: {c.note}")
        if row.output is not None:
            problems += [
                f"{c.name}, {c.workers}: {problem}"
                for problem in outputs.problems(row.output, images, c.writes_squares)
            ]
    if peer:
        print(f"in the peer's environment: {peer}")
    print()
    for line in _targets(rows, images):
        print(line)
    for problem in problems:
        print(f"NOT COMPARABLE: {problem}")
    if not problems:
        print(f"outputs: {images:,} samples each, as requested")
    return problems


_HEADER = (
    "contender",
    "processes",
    "images/s",
    "without start-up",
    "start-up, s",
    "CPU ms/image (without start-up)",
    "peak MB",
    "kB/image",
    "to ours",
)


def _cells(row: Row, images: int, ours: Row | None) -> tuple[str, ...]:
    throughputs = row.throughputs(images)
    writes = row.contender.writes
    ratio = median(throughputs) / median(ours.throughputs(images)) if ours else None
    return (
        row.contender.name,
        str(row.contender.workers),
        common.spread(throughputs),
        f"{row.throughput_without_start(images):,.0f}",
        f"{row.few.wall:.1f}" if writes else "–",
        f"{row.cpu(images) * 1000:.2f} ({row.cpu_without_start(images) * 1000:.2f})",
        f"{max(usage.peak for usage in row.rounds) / 1e6:,.0f}",
        f"{_mean_bytes(row) / 1000:.1f}",
        f"{ratio:.2f}" if ratio else "–",
    )


def _mean_bytes(row: Row) -> float:
    return row.output.mean_bytes if row.output else cast(Limit, row.contender).mean_bytes


def _row(rows: list[Row], kind: str, workers: int) -> Row | None:
    return next((r for r in rows if r.contender.kind == kind and r.contender.workers == workers), None)


def _targets(rows: list[Row], images: int) -> list[str]:
    """Return a line for each ratio and its target; medians of the ratios within rounds, as speed drifts."""
    workers = sorted({row.contender.workers for row in rows})
    most = workers[-1]
    wanted = [
        ("ours / Pillow loop", ("ours", most), ("pillow", most), 1.5),
        ("ours / img2dataset", ("ours", most), ("img2dataset", most), None),
        ("ours / limit", ("ours", most), ("limit", most), 0.75),
    ]
    for low, high in pairwise(workers):
        target = 1.85 if (low, high) == (1, 2) else None
        wanted.append((f"ours, {high} processes / {low}", ("ours", high), ("ours", low), target))
        wanted.append((f"limit, {high} processes / {low}", ("limit", high), ("limit", low), None))
    lines = []
    for name, above, below, target in wanted:
        first, second = _row(rows, *above), _row(rows, *below)
        if first is None or second is None:
            continue
        ratios = [a / b for a, b in zip(first.throughputs(images), second.throughputs(images), strict=True)]
        steady = first.throughput_without_start(images) / second.throughput_without_start(images)
        wanted_line = f"; target ≥ {target}: {common.judged(median(ratios) >= target)}" if target else ""
        lines.append(f"{name}: {common.spread(ratios, 2)}; without start-up {steady:.2f}{wanted_line}")
    return lines


def facts(rows: list[Row], candidates: list[Timing], images: int, peer: str) -> dict[str, Any]:
    """Return every measurement, for JSON."""
    return {
        "img2dataset": peer,
        "images": images,
        "memory": processes.memory_kind(),
        "candidates": [asdict(timing) for timing in candidates],
        "contenders": [
            {
                "name": row.contender.name,
                "kind": row.contender.kind,
                "processes": row.contender.workers,
                "note": row.contender.note,
                "few": _numbers(row.few),
                "rounds": [_numbers(usage) for usage in row.rounds],
                "output": asdict(row.output) if row.output else None,
            }
            for row in rows
        ],
        "targets": _targets(rows, images),
    }


def _numbers(usage: Usage) -> dict[str, float]:
    return {"wall_seconds": usage.wall, "cpu_seconds": usage.cpu, "peak_bytes": usage.peak}


def draw(rows: list[Row], images: int, path: Path) -> None:
    """Draw bars of images/s with the range of the rounds."""
    colors = {"ours": common.BLUE, "keep-original": common.BLUE, "limit": common.GRAY}
    figure, (axes,) = common.new_axes(8.5, 1.2 + 0.5 * len(rows))
    bars = []
    for row in rows:
        count = row.contender.workers
        name = f"{row.contender.name}, {count} process{'' if count == 1 else 'es'}"
        bars.append((name, row.throughputs(images), colors.get(row.contender.kind, common.ORANGE)))
    common.draw_bars(axes, bars, f"{images:,} images to {SIZE}×{SIZE} JPEG, quality {QUALITY}")
    figure.savefig(path, dpi=150)
