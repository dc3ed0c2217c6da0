"""`alexnet-bench`: measure what limits the speed of training."""

from typing import TYPE_CHECKING, Any

import click

from cli.common.commands import CONTEXT, Command
from cli.common.console import Column, echo, one_line_errors, print_table
from cli.common.jobs import job_options, new_job
from cli.common.live import readiness

if TYPE_CHECKING:
    from trainer.training.benchmark import Measured


@click.command(cls=Command, context_settings=CONTEXT)
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-bench")
@job_options
@one_line_errors
def main(**options: Any) -> None:
    """Measure what limits training on DATA: loader, network and gradient exchange, alone and together.

    DATA is a dataset made by `alexnet-prep shard`; by default the one that $ALEXNET_DATA names, else shards.
    The loader is measured with each backend that is installed. Nothing is written.
    """
    from trainer.distributed.env import first_of_all
    from trainer.distributed.launch import launch
    from trainer.training import benchmark

    job, processes = new_job("measuring", options)
    measured = launch(processes, benchmark.measure, job, benchmark.SECONDS)
    if measured is not None and first_of_all():
        _print(measured)


def _print(measured: "Measured") -> None:
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
    _print_loaders(measured)
    slowest, together = measured.slowest, measured.timings[-1]
    echo(
        f"slowest part of training: {slowest.name}, {slowest.images_per_second:,.0f} images/s; together they "
        f"reach {together.images_per_second / slowest.images_per_second:.0%} of it"
    )


def _print_loaders(measured: "Measured") -> None:
    """Print what the loaders did: alone, and with the model."""
    seconds = ("read", "decode", "augment", "wait")
    columns = [
        Column("part", 6, names=True),
        *(Column(f"{name} ms", rank) for name, rank in zip(seconds, (2, 3, 1, 5), strict=True)),
        Column("ready", 4),
    ]
    rows = []
    for timing in measured.timings:
        if timing.loader is not None:
            found = [getattr(timing.loader, name) for name in seconds]
            texts = ["–" if value is None else f"{1000 * value:,.1f}" for value in found]
            rows.append([timing.name, *texts, readiness(timing.loader)])
    print_table("per batch, of the first process (all its threads together)", columns, rows)
