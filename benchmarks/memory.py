"""Resident memory of processes over the course of a job: statistics, tables and charts of the soak runs."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import common
import numpy as np

_WARM_UP = 0.1


@dataclass(frozen=True)
class Course:
    """The time axis of traces.

    Attributes:
        unit: Unit of a trace's moments, "seconds" or "epochs".
        step: Interval between two samples, in `unit`.
        per: Name and length of the interval to which slopes refer, such as ("hour", 3600.0).
        axis: Name of the chart's axis and length of its unit, such as ("minutes", 60.0).
    """

    unit: str
    step: float
    per: tuple[str, float]
    axis: tuple[str, float]


@dataclass
class Trace:
    """RSS of one process.

    Attributes:
        name: Name in tables and charts.
        moments: Time of each sample since the job's start, in the unit of its `Course`.
        rss: Resident memory at each sample, in bytes.
    """

    name: str
    moments: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)

    def add(self, moment: float, rss: int) -> None:
        """Append a sample."""
        self.moments.append(moment)
        self.rss.append(rss)

    def at(self, moment: float, step: float) -> int | None:
        """Return the RSS nearest to `moment` in bytes; None where the process was not alive then."""
        if not self.moments[0] - 2 * step <= moment <= self.moments[-1] + 2 * step:
            return None
        return self.rss[int(np.argmin(np.abs(np.asarray(self.moments) - moment)))]

    def slope(self, after: float) -> float | None:
        """Return the least-squares slope from `after` on in bytes per unit; None of fewer than 3 samples."""
        moments, rss = np.asarray(self.moments), np.asarray(self.rss, float)
        late = moments >= after
        if late.sum() < 3:
            return None
        return float(np.polyfit(moments[late], rss[late], 1)[0])


def figures(trace: Trace, end: float, course: Course) -> dict[str, float | None]:
    """Return a job's RSS in MB at 10 %, 50 % and its `end`, its peak, and its slope after 10 %."""
    moments: dict[str, float | None] = {
        f"{share:.0%}": trace.at(share * end, course.step) for share in (0.1, 0.5)
    }
    slope = trace.slope(_WARM_UP * end)
    return {
        **{name: None if rss is None else rss / 1e6 for name, rss in moments.items()},
        "end": trace.rss[-1] / 1e6,
        "peak": max(trace.rss) / 1e6,
        "slope": None if slope is None else slope * course.per[1] / 1e6,
    }


def table(traces: Sequence[Trace], end: float, course: Course, heading: str) -> str:
    """Format the `figures` of the traces as a Markdown table; `heading` is that of the column of names."""
    header = (heading, "at 10 %", "at 50 %", "at its end", "peak", f"slope after 10 %, MB/{course.per[0]}")
    rows = []
    for trace in traces:
        found = figures(trace, end, course)
        slope = found.pop("slope")
        cells = ["–" if figure is None else f"{figure:.1f}" for figure in found.values()]
        rows.append((trace.name, *cells, "–" if slope is None else f"{slope:+.1f}"))
    return common.markdown(header, rows)


def write_csv(traces: Sequence[Trace], path: Path, heading: str, course: Course) -> None:
    """Write every sample as CSV; `heading` is that of the column of names."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow((heading, course.unit, "rss_bytes"))
        for trace in traces:
            rows.writerows(
                (trace.name, f"{moment:.2f}", rss)
                for moment, rss in zip(trace.moments, trace.rss, strict=True)
            )


def draw(traces: Sequence[Trace], end: float, path: Path, title: str, course: Course) -> None:
    """Draw one line per trace to a PNG file; the legend is in the order of the last samples."""
    figure, (axes,) = common.new_axes(9, 4.5)
    styles = ("-", "--", "-.", ":")
    label, scale = course.axis
    for number, trace in enumerate(sorted(traces, key=lambda trace: -trace.rss[-1])):
        axes.plot(
            [moment / scale for moment in trace.moments],
            [rss / 1e6 for rss in trace.rss],
            color=common.COLORS[number % len(common.COLORS)],
            linestyle=styles[number // len(common.COLORS) % len(styles)],
            linewidth=1.6,
            label=trace.name,
        )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_xlim(0, end / scale)
    axes.set_xlabel(label)
    axes.set_ylabel("resident memory (RSS), MB")
    axes.set_title(title, loc="left")
    figure.savefig(path, dpi=150)
