"""`alexnet-predict`: what a trained net sees in pictures."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.console import check_folder, complain, one_line_errors

if TYPE_CHECKING:
    from trainer.classify import Answer


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-predict")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="RUN_OR_CHECKPOINT")
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PICTURE...")
@click.option(
    "--also",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RUN_OR_CHECKPOINT",
    help="Average the probabilities of this net too; repeatable.",
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes of each picture.")
@click.option(
    "--views",
    type=click.Choice(["centre", "ten-crop"]),
    default="centre",
    show_default=True,
    help="Crops per picture.",
)
@click.option(
    "--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Pictures at a time."
)
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
    pictures: tuple[Path, ...],
    also: tuple[Path, ...],
    top: int,
    views: str,
    batch_size: int,
    form: str,
    out: Path | None,
) -> None:
    """Classify pictures, or folders of them, with a trained net.

    Files may be of any format that `alexnet-prep` reads, and are prepared as it does. A picture that cannot
    be read is named on stderr, the others are done all the same, and the exit code is 1. Needs no DALI.
    """
    from pipeline.files import write_bytes
    from trainer.classify import classify_pictures, find_pictures
    from trainer.trained import open_trained

    check_folder(out)
    nets = [open_trained(path).classifier for path in (checkpoint, *also)]
    answers = []
    for answer in classify_pictures(nets, find_pictures(pictures), views, top, batch_size):  # type: ignore[arg-type]
        if answer.error:
            complain(answer.error)
        else:
            answers.append(answer)
    text = {"table": _table, "json": _json, "csv": _csv}[form](answers)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_bytes(out, text.encode())
    if len(answers) < len(find_pictures(pictures)):
        sys.exit(1)


def _table(answers: "list[Answer]") -> str:
    width = max((len(str(answer.picture)) for answer in answers), default=0)
    lines = []
    for answer in answers:
        first, *others = answer.guesses
        rest = ", ".join(f"{guess.name} {guess.probability:.1%}" for guess in others)
        head = f"{answer.picture!s:<{width}}  {first.probability:6.1%}  {first.name}"
        lines.append(f"{head}{f'   ({rest})' if rest else ''}\n")
    return "".join(lines)


def _json(answers: "list[Answer]") -> str:
    values = [
        {
            "picture": str(answer.picture),
            "guesses": [
                {"id": guess.id, "name": guess.name, "probability": guess.probability}
                for guess in answer.guesses
            ],
        }
        for answer in answers
    ]
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _csv(answers: "list[Answer]") -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["picture", "rank", "id", "name", "probability"])
    for answer in answers:
        for rank, guess in enumerate(answer.guesses, start=1):
            rows.writerow([answer.picture, rank, guess.id, guess.name, f"{guess.probability:.6f}"])
    return text.getvalue()
