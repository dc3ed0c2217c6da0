"""One-line errors, exit codes and progress bars, shared by all commands."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click

from pipeline.errors import ToolkitError, UsageError
from pipeline.host import prepare_process
from pipeline.progress import OnProgress, no_progress


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command: print toolkit and system errors as one line on stderr, and exit with their code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        prepare_process()
        try:
            return command(*args, **kwargs)
        except ToolkitError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("stopped; what was finished is kept", 130)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}", 1)

    return wrapped


def fail(message: str, exit_code: int) -> None:
    """Print `error: message` as one line on stderr and exit with `exit_code`."""
    complain(message)
    sys.exit(exit_code)


def complain(message: str) -> None:
    """Print `error: message` as one line on stderr, over a progress bar, and show the cursor it hides."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K\x1b[?25h", err=True, nl=False)
    click.secho("error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(" ".join(message.split()), err=True)


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[OnProgress]:
    """Show a progress bar on stderr with throughput and remaining time; nothing where it is not a terminal.

    Args:
        description: Text to the left of the bar, such as "preparing".
        unit: What is counted, for the throughput: "images" is shown as images/s.

    Yields:
        `show(done, total)`, to be called with the number of units done so far and in all.
    """
    if not sys.stderr.isatty():  # returns early: rich is not imported
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    started = time.perf_counter()
    first: int | None = None  # done by an earlier run: not counted in the throughput
    columns = (BarColumn(), MofNCompleteColumn(), "{task.fields[speed]}", "left", TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        "{task.description}", *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=None, speed="")

        def show(done: int, total: int) -> None:
            nonlocal first
            first = done if first is None else first
            speed = (done - first) / max(time.perf_counter() - started, 1e-9)
            bar.update(task, completed=done, total=total, speed=f"{speed:,.0f} {unit}/s")

        yield show


def require_dali() -> None:
    """Check that NVIDIA DALI is installed, without importing it.

    Raises:
        UsageError: DALI is not installed (the message says how to install it), or this is not Linux.
    """
    from importlib.util import find_spec

    if sys.platform != "linux":
        raise UsageError(
            "this command needs NVIDIA DALI, which exists for Linux only; `alexnet-prep shard` and `info` "
            "work here"
        )
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        raise UsageError(
            "this command needs NVIDIA DALI, which is not installed: pip install 'alexnet-toolkit[cuda13]' "
            "(it also runs without a GPU)"
        )
