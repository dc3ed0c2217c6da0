"""What all commands share: one-line errors, exit codes, and the console."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click

from pipeline.errors import ToolkitError


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the toolkit's and the system's errors into one line on stderr and an exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
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
    """Print `error: message` in one line and leave."""
    click.secho("error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(" ".join(message.split()), err=True)
    sys.exit(exit_code)


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left on stderr; yields `show(done, total)`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None, rate="")

        def show(done: int, total: int) -> None:
            rate = done / max(time.perf_counter() - started, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:,.0f} {unit}/s")

        yield show


def require_dali() -> None:
    """Say in one line that DALI is needed, where it is not installed.

    Raises:
        UsageError: always a hint of how to install it, or that it exists for Linux only.
    """
    from importlib.util import find_spec

    from pipeline.errors import UsageError

    if sys.platform != "linux":
        raise UsageError(
            "this needs NVIDIA DALI, which exists for Linux only; `alexnet-prep shard` and `info` work here"
        )
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        raise UsageError(
            "this needs NVIDIA DALI, which is not installed: pip install 'alexnet-toolkit[cuda13]' "
            "(it also runs without a GPU)"
        )
