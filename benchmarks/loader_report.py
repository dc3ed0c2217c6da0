"""Print the tables and targets of loader.py, and draw its chart."""

from itertools import groupby
from pathlib import Path
from statistics import median

import common
from feeders import Row, Setting

# (kind, other kind, smallest ratio of their throughputs) for images stored at 256 px with the paper's crops.
_TARGETS = (("ours", "webdataset", 4.0), ("ours", "limit", 0.6))
_LIGHT = "#56B4E9"


def describe(setting: Setting) -> str:
    """Describe a setting as text."""
    size = "original size" if setting.original else "256 px"
    threads = f"{setting.threads} thread{'' if setting.threads == 1 else 's'}"
    return f"{size}, {setting.augmentation}, {threads}"


def show(rows: list[Row]) -> bool:
    """Print a table and the targets for each setting; return whether a target was missed."""
    missed = False
    header = ("loader", "output", "images/s", "to ours", "to the limit", "CPU µs/image")
    for _, group in groupby(rows, key=lambda row: describe(row.setting)):
        found = list(group)
        by_kind = {row.feeder.kind: row for row in found}
        print(f"{describe(found[0].setting)}:\n")
        table = [
            (
                row.feeder.name,
                row.feeder.output,
                common.spread(row.throughputs),
                _ratio(row, by_kind.get("ours")),
                _ratio(row, by_kind.get("limit")),
                f"{median(row.cpu):,.0f}",
            )
            for row in found
        ]
        print(common.markdown(header, table))
        print()
        for line, met in _targets(by_kind, found[0].setting):
            print(line)
            missed |= not met
        print()
    return missed


def _targets(rows: dict[str, Row], setting: Setting) -> list[tuple[str, bool]]:
    lines = []
    ours = rows.get("ours")
    peers = [row for kind, row in rows.items() if kind in ("webdataset", "spdl", "ffcv")]
    if ours is not None and peers:
        best = max(peers, key=lambda row: median(row.throughputs))
        ratio = common.paired(best.throughputs, ours.throughputs)
        rank = "first" if ratio <= 1 else f"behind {best.feeder.name} by a factor of {ratio:.2f}"
        lines.append((f"ours is {rank}", True))
    if setting.original or setting.augmentation != "paper":
        return lines
    for above, below, target in _TARGETS:
        if above in rows and below in rows:
            ratio = common.paired(rows[above].throughputs, rows[below].throughputs)
            text = f"{rows[above].feeder.name} / {rows[below].feeder.name}: {ratio:.2f}"
            lines.append((f"{text}, target ≥ {target}: {common.judged(ratio >= target)}", ratio >= target))
    return lines


def _ratio(row: Row, other: Row | None) -> str:
    return f"{common.paired(row.throughputs, other.throughputs):.2f}" if other is not None else "–"


def draw(rows: list[Row], path: Path) -> None:
    """Draw bars of images/s, one panel for each setting with the largest number of threads."""
    most = max(row.setting.threads for row in rows)
    panels = [list(group) for _, group in groupby(rows, key=lambda row: describe(row.setting))]
    panels = [panel for panel in panels if panel[0].setting.threads == most]
    colors = {"ours": common.BLUE, "dali": _LIGHT, "limit": common.GRAY}
    figure, axes = common.new_axes(11, 1.2 + 1.75 * len(panels), len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        bars = [
            (
                f"{row.feeder.name} ({row.feeder.output})",
                row.throughputs,
                colors.get(row.feeder.kind, common.ORANGE),
            )
            for row in panel
        ]
        common.draw_bars(axis, bars, describe(panel[0].setting))
        axis.label_outer()
    figure.savefig(path, dpi=130)
