"""Print the table of `alexnet-train --bench`."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trainer.training.benchmark import Measured


def print_measured(measured: "Measured") -> None:
    """Print a table of the measured parts, then its slowest part."""
    from rich.console import Console
    from rich.table import Table

    alone = [timing.images_per_second for timing in measured.timings if timing.name != "together"]
    on_gpu = any(timing.device_mb for timing in measured.timings)
    table = Table(title=f"recipe {measured.recipe}", title_justify="left")
    names = ["part", "images/s", "time vs. slowest", "cores", "host MB", *(["GPU MB"] if on_gpu else [])]
    for name in names:
        table.add_column(name, justify="left" if name == "part" else "right")
    for timing in measured.timings:
        share = "" if timing.name == "together" else f"{min(alone) / timing.images_per_second:.0%}"
        throughput = f"{timing.images_per_second:,.0f}"
        row = [timing.name, throughput, share, f"{timing.cores:.1f}", f"{timing.host_mb:,.0f}"]
        row += [f"{timing.device_mb:,.0f}"] if on_gpu else []
        table.add_row(*row, end_section=timing is measured.timings[-2])
    Console(highlight=False).print(table)
    slowest, together = measured.slowest, measured.timings[-1]
    click.echo(
        f"slowest part of training: {slowest.name}, {slowest.images_per_second:,.0f} images/s; together they "
        f"reach {together.images_per_second / slowest.images_per_second:.0%} of it"
    )
