"""Print the table of `alexnet-train --bench`."""

from typing import TYPE_CHECKING

from cli.common.console import Column, echo, print_table

if TYPE_CHECKING:
    from trainer.training.benchmark import Measured


def print_measured(measured: "Measured") -> None:
    """Print a table of the measured parts, then its slowest part."""
    alone = [timing.images_per_second for timing in measured.timings if timing.name != "together"]
    on_gpu = any(timing.device_mb for timing in measured.timings)
    columns = [
        Column("part", 6, names=True),
        Column("images/s", 5),
        Column("time vs. slowest", 4),
        Column("cores", 2),
        Column("host MB", 1),
        *([Column("GPU MB", 3)] if on_gpu else []),
    ]
    rows = []
    for timing in measured.timings:
        share = "" if timing.name == "together" else f"{min(alone) / timing.images_per_second:.0%}"
        throughput = f"{timing.images_per_second:,.0f}"
        row = [timing.name, throughput, share, f"{timing.cores:.1f}", f"{timing.host_mb:,.0f}"]
        rows.append([*row, *([f"{timing.device_mb:,.0f}"] if on_gpu else [])])
    print_table(f"recipe {measured.recipe}", columns, rows, total=True)
    slowest, together = measured.slowest, measured.timings[-1]
    echo(
        f"slowest part of training: {slowest.name}, {slowest.images_per_second:,.0f} images/s; together they "
        f"reach {together.images_per_second / slowest.images_per_second:.0%} of it"
    )
