"""`alexnet-predict`: what a trained network sees in images."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.common.console import check_folder, complain, one_line_errors, progress_bar

if TYPE_CHECKING:
    from trainer.inference.classify import ImagePrediction


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-predict")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="RUN_OR_CHECKPOINT")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option(
    "--also",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RUN_OR_CHECKPOINT",
    help="Average the probabilities of this network too; repeatable.",
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes of each image.")
@click.option(
    "--views",
    type=click.Choice(["center", "ten-crop"]),
    default="center",
    show_default=True,
    help="Crops per image.",
)
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Images at a time.")
@click.option("--exif-rotate", is_flag=True, help="Turn images as EXIF says.  [default: ignore it]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="Of the answers.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write them here instead of printing them."
)
@one_line_errors
def main(
    checkpoint: Path,
    images: tuple[Path, ...],
    also: tuple[Path, ...],
    top: int,
    views: str,
    batch_size: int,
    exif_rotate: bool,
    form: str,
    out: Path | None,
) -> None:
    """Classify images, or folders of them, with a trained network.

    Files may be of any format that `alexnet-prep` reads, and are prepared as it does. An image that cannot
    be read is named on stderr, the others are done all the same, and the exit code is 1. Needs no DALI; takes
    a GPU where torch sees one.
    """
    import torch

    from pipeline.host import keep_freed_memory
    from pipeline.storage.atomic import write_bytes
    from trainer.inference.classify import classify_images, find_images
    from trainer.runs.load_model import load_model

    check_folder(out)
    files = find_images(images)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    models = [load_model(path).classifier.to(device) for path in (checkpoint, *also)]
    predictions = []
    with progress_bar("classifying", "images") as show:
        found = classify_images(models, files, views, top, batch_size, exif_rotate)  # type: ignore[arg-type]
        for done, prediction in enumerate(found, start=1):
            if prediction.error:
                complain(prediction.error)
            else:
                predictions.append(prediction)
            show(done, len(files))
    text = {"table": _table, "json": _json, "csv": _csv}[form](predictions)
    # A file's name may hold bytes that are no UTF-8; written so, JSON gives them back.
    data = text.encode(errors="backslashreplace")
    if out is None:
        click.echo(data, nl=False)
    else:
        write_bytes(out, data)
    if len(predictions) < len(files):
        sys.exit(1)


def _table(predictions: "list[ImagePrediction]") -> str:
    """A line for each guess; the image's name stands before its likeliest."""
    names = [_printable(str(prediction.image)) for prediction in predictions]
    width = max(map(len, names), default=0)
    lines = []
    for name, prediction in zip(names, predictions, strict=True):
        for rank, guess in enumerate(prediction.guesses):
            shown = "" if rank else name
            lines.append(f"{shown:<{width}}  {guess.probability:6.1%}  {_printable(guess.name)}\n")
    return "".join(lines)


def _printable(text: str) -> str:
    """The text as it is, or with escapes where a character of it would move the cursor."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _json(predictions: "list[ImagePrediction]") -> str:
    values = [
        {
            "image": str(prediction.image),
            "guesses": [
                {"id": guess.id, "name": guess.name, "probability": guess.probability}
                for guess in prediction.guesses
            ],
        }
        for prediction in predictions
    ]
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _csv(predictions: "list[ImagePrediction]") -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["image", "rank", "id", "name", "probability"])
    for prediction in predictions:
        for rank, guess in enumerate(prediction.guesses, start=1):
            rows.writerow([prediction.image, rank, guess.id, guess.name, f"{guess.probability:.6f}"])
    return text.getvalue()
