"""`alexnet-show status`: print the state of a run from its folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.common.commands import Command
from cli.common.console import echo, echo_lines, one_line_errors, terminal_width
from cli.common.live import EpochLines, facts_of
from trainer.runs.records import in_words

if TYPE_CHECKING:
    from trainer.runs.status import RunState

_EPOCHS_SHOWN = 5


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the whole state as JSON.")
@one_line_errors
def status(run: Path, as_json: bool) -> None:
    """Show the progress of a run and its last epochs.

    RUN is the folder that `alexnet-train --out` named. The state says whether a process is alive that works
    there, on this machine or another.
    """
    import msgspec

    from trainer.recipe import load_recipe
    from trainer.runs.run_folder import RECIPE_FILE
    from trainer.runs.status import read_run

    found = read_run(run)
    if as_json:
        echo_lines(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    for name, text in _lines(run, found):
        echo(f" {text}", bold=f"{name:<11}")
    if found.rows:
        table, epochs = EpochLines(terminal_width()), load_recipe(str(run / RECIPE_FILE)).epochs
        echo()
        echo(bold=table.head)
        for row in found.rows[-_EPOCHS_SHOWN:]:
            echo(table.line(row, epochs, best=False))


def _lines(run: Path, found: "RunState") -> list[tuple[str, str]]:
    from trainer.runs.metrics_file import best_epoch

    facts, status = found.facts, found.status
    lines = [("run", str(run)), ("state", found.health)]
    for name in ("recipe", "dataset", "git", "started", "command"):
        if facts.get(name):
            lines.append((name, str(facts[name])))
    machine = facts.get("machine")
    if isinstance(machine, dict):
        lines.append(
            ("machine", f"{machine.get('processes')} x {machine.get('device')}, {machine.get('processor')}")
        )
    if status and status.step:
        row = status.step
        lines.append(
            ("progress", f"epoch {row.epoch}, update {row.done:,} of {row.total:,} ({row.steps:,} in all)")
        )
        lines.append(("", ", ".join(f"{name} {text}" for name, text in facts_of(row))))
    if status and status.line:
        lines.append(("message", status.line))
    best = best_epoch(found.rows)
    if best:
        lines.append(("best", f"top-1 {best.val_top1:.2%} in epoch {best.epoch}"))
    ages = ", ".join(f"{name} ({in_words(age)} ago)" for name, age in found.checkpoints.items())
    return [*lines, ("checkpoints", ages or "none yet")]
