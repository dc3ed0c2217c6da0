"""What commands print: lines, tables, progress bars, one-line errors; and their exit codes."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, TextIO

import click

from cli.common.environment import choose_cache_folders
from cli.common.interrupts import interruptible
from cli.common.streams import check_printed, only_prints, reader_gone
from pipeline.errors import ToolkitError
from pipeline.host import prepare_process, too_many_open_files
from pipeline.progress import OnProgress, no_progress
from pipeline.text import visible

_READER_GONE = 141  # what shells report of a program that a closed pipe ended: 128 + SIGPIPE
_WIDE_BAR = 80  # characters that a progress bar with throughput takes
_LEAST_TEXT = 12  # width below which a column of names is of no use


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command: print toolkit and system errors as one line on stderr, and exit with their code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            with interruptible():
                prepare_process()
                choose_cache_folders()
                result = command(*args, **kwargs)
                check_printed()
        except ToolkitError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt as interrupt:
            fail("; ".join(filter(None, ("stopped", *map(str, interrupt.args)))), 130)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fail(too_many_open_files(error) or f"{where}{error.strerror or error}", 1)
        if reader_gone() and only_prints():
            sys.exit(_READER_GONE)
        return result

    return wrapped


def fail(message: str, exit_code: int) -> None:
    """Print `error: message` as one line on stderr and exit with `exit_code`."""
    complain(message)
    sys.exit(exit_code)


def complain(message: str) -> None:
    """Print `error: message` as one line on stderr, over a progress bar, and show the cursor it hides."""
    if _has_escapes(sys.stderr):
        click.echo("\r\x1b[K\x1b[?25h", file=sys.stderr, nl=False)
    head = click.style("error: ", fg="red", bold=True)
    click.echo(head + visible(" ".join(message.split())), file=sys.stderr, color=_has_escapes(sys.stderr))


def echo(text: str = "", *, bold: str = "", err: bool = False) -> None:
    """Print one line, in which no character controls the terminal: see `pipeline.text.visible`.

    Args:
        text: The line.
        bold: First part of the line, printed in bold where the terminal can.
        err: Print to stderr.
    """
    stream = sys.stderr if err else sys.stdout
    head = click.style(visible(bold), bold=True) if bold else ""
    click.echo(head + visible(text), file=stream, color=_has_escapes(stream))


def echo_lines(text: str) -> None:
    """Print a text of several lines, such as a file's content."""
    for line in text.removesuffix("\n").split("\n"):
        echo(line)


def _has_escapes(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def terminal_width() -> int | None:
    """Return the terminal's width in characters, or None where stdout is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        head: Its name.
        rank: Columns of the lowest rank are left out on a narrow terminal.
        names: Whether it holds names: they stand on the left, and long ones are cut. Numbers never are.
    """

    head: str
    rank: int
    names: bool = False


def print_table(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], total: bool = False
) -> None:
    """Print a table with as many columns as fit.

    Args:
        title: Line above the table.
        columns: The columns.
        rows: A text for each column.
        total: Whether the last row is set apart from those above it.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = terminal_width() or 100
    texts = [[visible(text) for text in row] for row in rows]
    longest = {
        column: max(cell_len(text) for text in (column.head, *(row[place] for row in texts)))
        for place, column in enumerate(columns)
    }
    shown = list(columns)

    def least(column: Column) -> int:
        return min(longest[column], _LEAST_TEXT) if column.names else longest[column]

    while len(shown) > 2 and 1 + sum(3 + least(column) for column in shown) > width:
        shown.remove(min(shown, key=lambda column: column.rank))
    table = Table(title=Text(visible(title)), title_justify="left")
    for column in shown:
        table.add_column(column.head, justify="left" if column.names else "right", min_width=least(column))
    for row in texts:
        cells = [text for text, column in zip(row, columns, strict=True) if column in shown]
        last_but_one = total and row is texts[-2]
        table.add_row(
            *(Text(text, no_wrap=True, overflow="ellipsis") for text in cells), end_section=last_but_one
        )
    Console(highlight=False, width=width).print(table)


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[OnProgress]:
    """Show a progress bar on stderr with throughput and remaining time; nothing where no escapes work.

    Args:
        description: Text to the left of the bar, such as "preparing".
        unit: What is counted, for the throughput: "images" is shown as images/s.

    Yields:
        `show(done, total)`, to be called with the number of units done so far and in all.
    """
    if not _has_escapes(sys.stderr):  # returns early: rich is not imported
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    started = time.perf_counter()
    first: int | None = None  # done by an earlier run: not counted in the throughput
    console = Console(stderr=True)
    wide = (BarColumn(), MofNCompleteColumn(), "{task.fields[speed]}", "left", TimeRemainingColumn())
    columns = wide if console.width >= _WIDE_BAR else (MofNCompleteColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=None, speed="")

        def show(done: int, total: int) -> None:
            nonlocal first
            first = done if first is None else first
            speed = (done - first) / max(time.perf_counter() - started, 1e-9)
            bar.update(task, completed=done, total=total, speed=f"{speed:,.0f} {unit}/s")

        yield show
