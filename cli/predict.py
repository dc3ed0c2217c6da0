"""`alexnet-predict`: classify image files with a trained network."""

import csv
import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.common.commands import CONTEXT, Command, section
from cli.common.console import complain, echo, echo_lines, one_line_errors, progress_bar, terminal_width
from cli.common.options import precision_option, weights_option
from cli.common.outputs import OutputFile, check_outputs, force_option
from pipeline.text import visible

if TYPE_CHECKING:
    from trainer.inference.classify import ImagePrediction
    from trainer.precision import PrecisionName
    from trainer.runs.state_dict import WeightsChoice


@click.command(cls=Command, context_settings=CONTEXT)
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-predict")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="RUN_OR_CHECKPOINT")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@section(
    "Network",
    click.option(
        "--ensemble",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="RUN_OR_CHECKPOINT",
        help="Another network to average the probabilities with; repeatable.",
    ),
    precision_option,
    weights_option,
)
@section(
    "Images",
    click.option(
        "--views",
        type=click.Choice(["center", "ten-crop"]),
        default="center",
        show_default=True,
        help="Crops of each image: the center crop, or ten crops whose probabilities are averaged.",
    ),
    click.option(
        "--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Images per batch."
    ),
    click.option(
        "--exif-rotate", is_flag=True, help="Rotate images by their EXIF orientation.  [default: ignore it]"
    ),
)
@section(
    "Output",
    click.option(
        "--top",
        default=5,
        show_default=True,
        type=click.IntRange(1),
        help="Number of most probable classes to print for each image.",
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(["table", "json", "csv"]),
        default="table",
        show_default=True,
        help="Output format: table, JSON or CSV.",
    ),
    click.option(
        "-o", "--out", type=OutputFile(), help="Write the predictions to this file instead of printing them."
    ),
    force_option,
)
@one_line_errors
def main(
    checkpoint: Path,
    images: tuple[Path, ...],
    ensemble: tuple[Path, ...],
    top: int,
    views: str,
    batch_size: int,
    precision: "PrecisionName",
    exif_rotate: bool,
    form: str,
    out: Path | None,
    force: bool,
    weights: "WeightsChoice | None",
) -> None:
    """Classify images, or folders of images, with a trained network.

    Images may have any format that `alexnet-prep` reads, and are preprocessed in the same way. An image that
    cannot be read is reported on stderr, the others are still classified, and the exit code is 1. Runs on a
    GPU where torch finds one; does not need DALI.
    """
    check_outputs(force)
    import torch

    from pipeline.host import keep_freed_memory
    from pipeline.storage.atomic import write_bytes
    from trainer.inference.classify import classify_images, find_images
    from trainer.precision import check_precision
    from trainer.runs.load_model import load_model

    files = find_images(images)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_precision(precision, "cpu" if device == "cpu" else "gpu")
    if device == "cpu":
        keep_freed_memory()
    loaded = [load_model(path, weights) for path in (checkpoint, *ensemble)]
    for note in (note for trained in loaded for note in trained.notes):
        echo(f"note: {note}", err=True)
    models = [trained.classifier.to(device) for trained in loaded]
    found = classify_images(models, files, views, top, batch_size, exif_rotate, precision)  # type: ignore[arg-type]
    echo(f"classifying on the {'GPU' if device == 'cuda' else 'CPU'} in {precision}", err=True)
    predictions = []
    with progress_bar("classifying", "images") as show:
        for done, prediction in enumerate(found, start=1):
            if prediction.error:
                complain(prediction.error)
            else:
                predictions.append(prediction)
            show(done, len(files))
    text = {"table": _table, "json": _json, "csv": _csv}[form](predictions, precision)
    if out is None:
        echo_lines(text)
    else:
        write_bytes(out, text.encode())
    if len(predictions) < len(files):
        sys.exit(1)


def _table(predictions: "list[ImagePrediction]", _precision: str) -> str:
    """Format one line per predicted class; the image's name stands before its most probable class."""
    names = [_shortened(visible(str(prediction.image))) for prediction in predictions]
    width = max(map(len, names), default=0)
    lines = []
    for name, prediction in zip(names, predictions, strict=True):
        for rank, guess in enumerate(prediction.guesses):
            shown = "" if rank else name
            lines.append(f"{shown:<{width}}  {guess.probability:6.1%}  {visible(guess.name)}\n")
    return "".join(lines)


def _shortened(name: str) -> str:
    """Return the end of a long path, which leaves room for the names of classes."""
    limit = max(20, (terminal_width() or 140) - 40)
    return name if len(name) <= limit else f"…{name[1 - limit :]}"


def _json(predictions: "list[ImagePrediction]", precision: str) -> str:
    values = [
        {"image": str(found.image), "precision": precision, "guesses": found.guesses} for found in predictions
    ]
    # In ASCII, names of files that are not UTF-8 and control characters survive, whatever the terminal.
    return json.dumps(values, indent=1, default=asdict) + "\n"


def _csv(predictions: "list[ImagePrediction]", _precision: str) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["image", "rank", "id", "name", "probability"])
    for prediction in predictions:
        for rank, guess in enumerate(prediction.guesses, start=1):
            names = map(visible, (guess.id, guess.name))
            rows.writerow([visible(str(prediction.image)), rank, *names, f"{guess.probability:.6f}"])
    return text.getvalue()
