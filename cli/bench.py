"""What `alexnet-train --bench` measured, as a table."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trainer.training.benchmark import Measured


def print_measured(measured: "Measured") -> None:
    """Print the parts and what limits."""
    from rich.console import Console
    from rich.table import Table

    alone = [part.images_per_second for part in measured.parts if part.name != "together"]
    on_gpu = any(part.device_mb for part in measured.parts)
    table = Table(title=f"recipe {measured.recipe}", title_justify="left")
    names = ["part", "images/s", "time, of the slowest", "cores", "host MB", *(["GPU MB"] if on_gpu else [])]
    for name in names:
        table.add_column(name, justify="left" if name == "part" else "right")
    for part in measured.parts:
        share = "" if part.name == "together" else f"{min(alone) / part.images_per_second:.0%}"
        rate = f"{part.images_per_second:,.0f}"
        row = [part.name, rate, share, f"{part.cores:.1f}", f"{part.host_mb:,.0f}"]
        row += [f"{part.device_mb:,.0f}"] if on_gpu else []
        table.add_row(*row, end_section=part is measured.parts[-2])
    Console(highlight=False).print(table)
    click.echo(measured.advice)
