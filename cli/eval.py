"""`alexnet-eval`: how good a trained net is."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.console import check_folder, one_line_errors, require_dali

if TYPE_CHECKING:
    from trainer import Evaluation


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-eval")
@click.argument(
    "checkpoints",
    nargs=-1,
    type=click.Path(path_type=Path),
    metavar="RUN_OR_CHECKPOINT...",
)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--views",
    type=click.Choice(["centre", "ten-crop"]),
    default="centre",
    show_default=True,
    help="Crops per picture.",
)
@click.option("--split", default="val", show_default=True, help="The split to measure.")
@click.option(
    "--batch-size",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures per step of a process.",
)
@click.option("--gpus", type=int, help="Evaluate on this many GPUs.  [default: all visible ones]")
@click.option("--cpus", type=int, help="Evaluate in this many CPU processes.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Save the result as JSON.",
)
@click.option(
    "--kernels",
    "kernels_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Save a picture of the (first) net's first-layer kernels as PNG.",
)
@one_line_errors
def main(
    checkpoints: tuple[Path, ...],
    data: Path,
    views: str,
    split: str,
    batch_size: int,
    gpus: int | None,
    cpus: int | None,
    json_file: Path | None,
    kernels_file: Path | None,
) -> None:
    """Measure top-1 and top-5 of trained nets on DATA, a folder made by `alexnet-prep shard`.

    Several checkpoints are an ensemble. Probabilities, not logits, are averaged over crops and nets. Of
    a run's folder the best checkpoint is taken.
    """
    require_dali()
    from pipeline import UsageError
    from pipeline.files import write_bytes
    from trainer.distributed import choose_processes, launch
    from trainer.evaluation import evaluate_checkpoints

    if not checkpoints:
        raise UsageError(f"found only {data}; give runs or checkpoints first, and the dataset's folder last")
    for file in (json_file, kernels_file):
        check_folder(file)
    processes = choose_processes(gpus, cpus)
    click.echo(f"evaluating on {processes.reason}", err=True)
    result = launch(processes, evaluate_checkpoints, checkpoints, data, split, views, batch_size)
    if result is None:  # another rank under torchrun
        return
    _print(result)
    if json_file is not None:
        write_bytes(json_file, json.dumps(asdict(result), indent=1).encode() + b"\n")
    if kernels_file is not None:
        _draw_kernels(checkpoints[0], kernels_file)


def _print(result: "Evaluation") -> None:
    metrics = result.metrics
    nets = len(result.checkpoints)
    what = result.checkpoints[0] if nets == 1 else f"ensemble of {nets}"
    click.echo(
        f"{what}: {metrics.samples:,} {result.split} pictures, {result.classes} classes, {result.views}"
    )
    for name, share in (("top-1", metrics.top1), ("top-5", metrics.top5)):
        click.echo(f"{click.style(name, bold=True)}  accuracy {share:7.2%}   error {1 - share:7.2%}")
    click.echo(f"always guessing the largest class: {metrics.largest_class:.2%} top-1")


def _draw_kernels(run_or_checkpoint: Path, file: Path) -> None:
    from trainer import checkpoint, draw_kernels
    from trainer.drawing import save_figure

    path = checkpoint.find(run_or_checkpoint)
    classifier = checkpoint.classifier_of(checkpoint.load(path), path)
    save_figure(draw_kernels(classifier, run_or_checkpoint.stem), file)
    click.echo(f"kernels: {file}")
