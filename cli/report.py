"""`alexnet-show report`: write the report of a run."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.common.commands import Command, section
from cli.common.console import echo, one_line_errors, progress_bar
from cli.common.options import precision_option
from cli.common.outputs import OutputFile, check_folder, check_outputs, force_option
from cli.common.streams import writes_files

if TYPE_CHECKING:
    from trainer.precision import PrecisionName


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@section(
    "Output",
    click.option("-o", "--out", type=OutputFile(), help="HTML file to write.  [default: RUN/report.html]"),
    click.option(
        "--skip", multiple=True, metavar="PART", help="Part to leave out, such as neighbors; repeatable."
    ),
)
@section(
    "Images",
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="Seed of the choice of images.",
    ),
    click.option("--data", type=click.Path(), help="Dataset to use.  [default: the one named in run.json]"),
)
@precision_option
@force_option
@one_line_errors
def report(
    run: Path,
    out: Path | None,
    skip: tuple[str, ...],
    seed: int,
    precision: "PrecisionName",
    data: str | None,
    force: bool,
) -> None:
    """Write a report about a run as one HTML page.

    The page shows summary, curves, throughput, kernels, predictions, neighbors, confusion, data statistics
    and recipe. Parts that cannot be made, for example because the dataset is missing, are listed with the
    reason.
    """
    check_outputs(force)
    writes_files()
    if out is None and run.is_dir():  # a report in the run's folder is replaced: it is the run's own
        check_folder(run / "report.html")
    from pipeline.text import in_bytes
    from trainer.report.page import write_report

    with progress_bar("reading", "images") as show:
        made = write_report(
            run,
            out or run / "report.html",
            data,
            skip=skip,
            seed=seed,
            precision=precision,
            on_progress=show,
        )
    for part, reason in made.left_out.items():
        echo(f"note: without {part}: {reason}", err=True)
    echo(f"{made.file} ({in_bytes(made.file.stat().st_size)})")
