"""A training run on the console: a live view on a terminal, lines in a log."""

import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trainer import EpochRow
    from trainer.reporting import Ending, StepRow, Weights

_HEAD = "epoch          rate  train loss   top-1  val loss   top-1   top-5  images/s  wait"
# A log that shows life, without being full of it.
_LOG_SECONDS = 60.0


class ConsoleReporter:
    """Each epoch's line on stdout; within it, on stderr, a view of a terminal or a line a minute.

    A `Reporter` of `trainer.reporting`.
    """

    wants_weights = False

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, transient=True, auto_refresh=False)
        self._epochs = 0
        self._spoke = time.monotonic()

    def __enter__(self) -> "ConsoleReporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, facts: dict[str, str]) -> None:
        """Print the run's facts and the head of the epochs' lines."""
        for name, text in facts.items():
            click.echo(f"{click.style(f'{name:<10}', bold=True)} {text}")
        click.secho(_HEAD, bold=True)

    def note(self, line: str) -> None:
        """Print a note on stderr."""
        self._live.stop()
        click.echo(f"note: {line}", err=True)

    def step(self, row: "StepRow") -> None:
        """Show where the epoch is."""
        if self._console.is_terminal:
            self._live.start()
            self._live.update(view(row), refresh=True)
        elif time.monotonic() - self._spoke > _LOG_SECONDS:
            self._spoke = time.monotonic()
            click.echo(
                ", ".join(_heading(row) + [f"{name} {text}" for name, text in facts_of(row)]), err=True
            )

    def epoch(self, row: "EpochRow", epochs: int, best: bool) -> None:
        """Print the epoch's line in place of the view."""
        self._live.stop()
        self._spoke = time.monotonic()
        click.echo(
            f"{row.epoch:>5}/{epochs:<4} {row.rate:>8.2g} {row.train_loss:>11.3f} {row.train_top1:>7.2%} "
            f"{row.val_loss:>9.3f} {row.val_top1:>7.2%} {row.val_top5:>7.2%} "
            f"{row.images_per_second:>9,.0f} {row.data_wait:>5.0%}{'  best' if best else ''}"
        )

    def weights(self, weights: "Weights") -> None:
        """Nothing of them is shown."""

    def ended(self, how: "Ending", line: str) -> None:
        """Say how a run ended, unless it failed: the error says that."""
        self._live.stop()
        if how != "failed":
            click.echo(line)


def view(row: "StepRow") -> Any:
    """What a terminal shows of a moment, as something that rich prints at any width."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    epoch, updates = _heading(row)
    bar.add_row(Text(epoch, style="bold"), ProgressBar(total=row.total, completed=row.done), updates)
    facts = [Text.assemble((f"{name} ", "dim"), text) for name, text in facts_of(row)]
    return Group(bar, Columns(facts, padding=(0, 3)))


def facts_of(row: "StepRow") -> list[tuple[str, str]]:
    """The numbers of a moment: (name, text with its unit)."""
    return [
        ("images/s", f"{row.images_per_second:,.0f}"),
        ("loss", f"{row.loss:.3f}"),
        ("top-1", f"{row.top1:.1%}"),
        ("rate", f"{row.rate:.2g}"),
        ("data wait", f"{row.data_wait:.0%}"),
        ("memory", f"{row.memory_mb:,.0f} MB"),
        ("left", "…" if row.seconds_left is None else in_words(row.seconds_left)),
    ]


def in_words(seconds: float) -> str:
    """A time as people say it, to two figures or so: 45 s, 12 min, 3 h 20 min, 5 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def _heading(row: "StepRow") -> list[str]:
    return [f"epoch {row.epoch}", f"{row.done:,}/{row.total:,} updates"]
