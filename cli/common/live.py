"""Console output of a training run: a live view on a terminal, plain lines in a log file."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from cli.common.console import echo, terminal_width
from pipeline.loader.stats import LoaderStats
from trainer.callbacks.base import Callback
from trainer.runs.records import Ending, MetricsRow, StepMetrics, in_words

if TYPE_CHECKING:
    from rich.live import Live

# Seconds between two progress lines in a log: often enough to show that the run is alive.
_LOG_SECONDS = 60.0
_BEST = "  best"


class _Column(NamedTuple):
    """A column of the epoch table; on a narrow terminal the columns of the lowest rank are left out."""

    head: str
    width: int
    rank: int
    text: Callable[[MetricsRow], str]


def _decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


_COLUMNS = (
    _Column("lr", 8, 2, lambda row: f"{row.lr:.2g}"),
    _Column("train loss", 10, 5, lambda row: _decimals(row.train_loss)),
    _Column("top-1", 7, 4, lambda row: _percent(row.train_top1)),
    _Column("val loss", 9, 7, lambda row: _decimals(row.val_loss)),
    _Column("top-1", 7, 8, lambda row: _percent(row.val_top1)),
    _Column("top-5", 7, 6, lambda row: _percent(row.val_top5)),
    _Column("images/s", 9, 3, lambda row: f"{row.images_per_second:,.0f}"),
    _Column("wait", 5, 1, lambda row: f"{row.data_wait:.0%}"),
)


class EpochLines:
    """Format the table of epochs and validations, one line for each, with as many columns as fit.

    Args:
        width: Width of the terminal in characters; None for no limit.
    """

    def __init__(self, width: int | None) -> None:
        shown = list(_COLUMNS)
        while width is not None and len(shown) > 2 and self._width(shown) > width:
            shown.remove(min(shown, key=lambda column: column.rank))
        self._shown = shown

    @staticmethod
    def _width(columns: list[_Column]) -> int:
        return len(f"{'epoch':<10}{_BEST}") + sum(1 + column.width for column in columns)

    @property
    def head(self) -> str:
        """The header line with the names of the columns."""
        return " ".join([f"{'epoch':<10}", *(f"{column.head:>{column.width}}" for column in self._shown)])

    def line(self, row: MetricsRow, epochs: int, best: bool) -> str:
        """Format a line; `best` marks the epoch with the best validation top-1 so far."""
        texts = [f"{column.text(row):>{column.width}}" for column in self._shown]
        at = f"{row.epoch}" if row.kind == "epoch" else f"{row.epochs_done:.2f}"[:5].rstrip(".")
        return " ".join([f"{at:>5}/{epochs:<4}", *texts]) + (_BEST if best else "")


class ConsoleCallback(Callback):
    """Callback that prints a run: one line per validation on stdout, progress within an epoch on stderr.

    Progress is a live view on a terminal, and one line a minute elsewhere.

    Args:
        epochs: Number of epochs of the whole run.
    """

    def __init__(self, epochs: int) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._on_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._lines = EpochLines(terminal_width())
        self._epochs = epochs
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def on_start(self, facts: dict[str, str]) -> None:
        """Print the run's facts and the header of the epoch table."""
        for name, text in facts.items():
            echo(f" {text}", bold=f"{name:<10}")
        echo(bold=self._lines.head)

    def on_log(self, line: str) -> None:
        """Print a note on stderr."""
        self._clear()
        echo(f"note: {line}", err=True)

    def on_step(self, row: StepMetrics) -> None:
        """Show the progress within the epoch."""
        if self._on_terminal:
            self._show(view(row, self._epochs))
        elif time.monotonic() - self._last_line > _LOG_SECONDS:
            self._last_line = time.monotonic()
            facts = [f"{name} {text}" for name, text in facts_of(row)]
            echo(", ".join([*_heading(row, self._epochs), *facts]), err=True)

    def on_validation(self, row: MetricsRow, epochs: int) -> None:
        """Print the validation's line, as that of an epoch."""
        self.on_epoch(row, epochs, best=False)

    def on_epoch(self, row: MetricsRow, epochs: int, best: bool) -> None:
        """Remove the live view and print the epoch's line."""
        self._clear()
        self._last_line = time.monotonic()
        echo(self._lines.line(row, epochs, best))

    def on_end(self, how: Ending, line: str) -> None:
        """Print how the run ended, except after a failure, which is reported by the error message."""
        self._clear()
        if how != "failed":
            echo(line)

    def _show(self, renderable: Any) -> None:
        from rich.live import Live

        if self._live is None:
            # Do not redirect stdout: it may be a file.
            self._live = Live(
                console=self._console, transient=True, auto_refresh=False, redirect_stdout=False
            )
            self._live.start()
        self._live.update(renderable, refresh=True)

    def _clear(self) -> None:
        """Remove the live view. The next one is a new `Live`: a restarted one would erase newer lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def view(row: StepMetrics, epochs: int) -> Any:
    """Return the live view of a step, of a run of `epochs`, as a rich renderable for any width."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    epoch, updates = _heading(row, epochs)
    bar.add_row(Text(epoch, style="bold"), ProgressBar(total=row.total, completed=row.done), updates)
    facts = [Text.assemble((f"{name} ", "dim"), text) for name, text in facts_of(row)]
    return Group(bar, Columns(facts, padding=(0, 3)))


def facts_of(row: StepMetrics) -> list[tuple[str, str]]:
    """Return the metrics of a step as (name, text with unit) pairs."""
    bound = []
    if row.loader and row.input_bound:
        known = row.loader.ready is not None
        bound = [("input-bound:", f"{readiness(row.loader)} batches ready" if known else "waiting for DALI")]
    rest = f" + {row.gpu_rest_mb:,.0f} MB outside torch" if row.gpu_rest_mb else ""
    return [
        ("images/s", f"{row.images_per_second:,.0f}"),
        ("loss", f"{row.loss:.3f}"),
        ("top-1", f"{row.top1:.1%}"),
        ("lr", f"{row.lr:.2g}"),
        ("data wait", f"{row.data_wait:.0%}"),
        *bound,
        ("memory", f"{row.memory_mb:,.0f} MB{rest}"),
        ("left", "…" if row.seconds_left is None else in_words(row.seconds_left)),
    ]


def readiness(loader: LoaderStats) -> str:
    """Return how many of the batches under way are ready, such as "0.3 of 3"."""
    ready = "?" if loader.ready is None else f"{loader.ready:.1f}"
    return f"{ready} of {loader.under_way:.0f}"


def _heading(row: StepMetrics, epochs: int) -> list[str]:
    updates = "validating" if row.done == row.total else f"{row.done:,}/{row.total:,} updates"
    return [f"epoch {row.epoch}/{epochs}", updates]
