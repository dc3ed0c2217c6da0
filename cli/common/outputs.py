"""Files that commands write: nothing that exists is replaced without --force, and no input with it."""

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click

from cli.common.commands import section
from cli.common.streams import writes_files
from pipeline.errors import UsageError

force_option = section(
    "Output", click.option("--force", is_flag=True, help="Replace output files that exist already.")
)
"""The option that lets a command replace its output; see `check_outputs`."""

# A folder with the first file is a run or a dataset. Its parts are inputs, whatever the command line names.
_PARTS = {
    "run.json": ("run.json", "recipe.toml", "metrics.jsonl", "status.json", "*.pt"),
    "manifest.json": ("manifest.json", "mean_image.npy", "report.csv"),
}


class OutputFile(click.Path):
    """Option type for a file to write, which `check_outputs` checks."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)


def check_outputs(force: bool, *more: Path) -> None:
    """Check the output files of the current command, before it does any work.

    Args:
        force: Whether existing files may be replaced: the value of `force_option`.
        more: Files to write beside those that the command's parameters of type `OutputFile` name.

    Raises:
        UsageError: A file exists (without `force`), is an input or a part of a run or dataset, is a dead link
            or no regular file, or cannot be written; or two outputs are the same file.
    """
    context = click.get_current_context()
    outputs = {
        parameter.name
        for parameter in context.command.params
        if isinstance(parameter.type, OutputFile) and context.params[parameter.name]
    }
    seen: set[str] = set()
    if outputs:
        writes_files()
    inputs = list(_inputs(context.params, outputs))
    for file in (*(context.params[name] for name in outputs), *more):
        if (real := os.path.realpath(file)) in seen:
            raise UsageError(f"{file}: two outputs of this command name this file; choose another for one")
        seen.add(real)
        _check_kind(file, inputs)
        if file.exists() and not force:
            raise UsageError(f"{file}: exists already; choose another path, or replace it with --force")
        check_folder(file)


def check_folder(file: Path) -> None:
    """Check before any work is done that a file can be written in its folder.

    Raises:
        UsageError: The file's folder does not exist or is not writable.
    """
    if not file.parent.is_dir():
        raise UsageError(f"{file}: the folder {file.parent} does not exist; make it or choose another")
    try:
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be written: {error.strerror} in {file.parent}; choose another path"
        ) from error


def _check_kind(file: Path, inputs: list[str | Path]) -> None:
    """Raise `UsageError` where something exists at `file` that not even --force may replace."""
    from pipeline.storage.atomic import refuse_dead_link  # imports NumPy

    refuse_dead_link(file)
    if not file.exists():
        return
    if not file.is_file():
        raise UsageError(f"{file}: is no regular file; choose another path")
    if any(_same(file, one) for one in inputs):
        raise UsageError(f"{file}: is an input of this command; choose another path")
    for marker, parts in _PARTS.items():
        if (file.parent / marker).is_file() and any(fnmatch(file.name, part) for part in parts):
            raise UsageError(f"{file}: is part of a run or dataset; choose another path")


def _inputs(parameters: dict[str, Any], outputs: set[str]) -> Iterator[str | Path]:
    """Yield the values of all parameters but the outputs that may be paths."""
    for name, value in parameters.items():
        for one in value if isinstance(value, tuple) else (value,):
            if name not in outputs and isinstance(one, str | Path):
                yield one


def _same(file: Path, value: str | Path) -> bool:
    try:
        return file.samefile(value)
    except (OSError, ValueError):
        return False
