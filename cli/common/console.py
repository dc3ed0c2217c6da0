"""What all commands share: one-line errors, exit codes, and the console."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import ToolkitError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress


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
    complain(message)
    sys.exit(exit_code)


def complain(message: str) -> None:
    """Print `error: message` in one line, with the cursor that a bar may have hidden."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K\x1b[?25h", err=True, nl=False)
    click.secho("error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(" ".join(message.split()), err=True)


def new_bar(*columns: str) -> "Progress":
    """A bar on stderr that vanishes when done, with text columns of rich's format behind it.

    Where stderr is no terminal, nothing is drawn.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(column) for column in columns),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left on stderr; yields `show(done, total)`."""
    if not sys.stderr.isatty():  # and spare the import of rich
        yield lambda *_: None
        return
    started = time.perf_counter()
    first: int | None = None  # what an earlier run had done
    with new_bar("{task.fields[speed]}") as bar:
        task = bar.add_task(description, total=None, speed="")

        def show(done: int, total: int) -> None:
            nonlocal first
            first = done if first is None else first
            speed = (done - first) / max(time.perf_counter() - started, 1e-9)
            bar.update(task, completed=done, total=total, speed=f"{speed:,.0f} {unit}/s")

        yield show


def check_folder(file: Path | None) -> None:
    """Refuse a file that cannot be written, before the work that it shall hold is done.

    Raises:
        UsageError: its folder does not exist, or takes no files.
    """
    if file is None:
        return
    if not file.parent.is_dir():
        raise UsageError(f"{file}: the folder {file.parent} does not exist; make it or name another")
    try:
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be written: {error.strerror} in {file.parent}; name another place"
        ) from error


def require_dali() -> None:
    """Say in one line that DALI is needed, where it is not installed.

    Raises:
        UsageError: always a hint of how to install it, or that it exists for Linux only.
    """
    from importlib.util import find_spec

    if sys.platform != "linux":
        raise UsageError(
            "this needs NVIDIA DALI, which exists for Linux only; `alexnet-prep shard` and `info` work here"
        )
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        raise UsageError(
            "this needs NVIDIA DALI, which is not installed: pip install 'alexnet-toolkit[cuda13]' "
            "(it also runs without a GPU)"
        )
