"""Folders that commands take where the command line names none, and the line that says which."""

from pathlib import Path

import click
from click.core import ParameterSource

from cli.common.console import echo

DATASET = "shards"
"""The dataset's folder, in the current one."""

_VARIABLE = "ALEXNET_DATA"
RUNS = Path("runs")
"""The folder of all runs, in the current one."""

source_argument = click.argument("source", default=".", type=click.Path())
"""The source; by default the current folder."""

out_argument = click.argument("out", default=DATASET, envvar=_VARIABLE, type=click.Path())
"""A dataset to make or describe; by default the one that $ALEXNET_DATA names, else `shards`."""

data_argument = click.argument("data", default=DATASET, envvar=_VARIABLE, type=click.Path())
"""A dataset to read; the default is that of `out_argument`."""


def say_source_and_out(source: str, out: str) -> None:
    """Print which folders were chosen, where the command line leaves some out."""
    chosen = []
    if _is_open("source"):
        chosen.append(f"source: the current folder, {Path(source).absolute()}")
    if _is_open("out"):
        chosen.append(f"dataset: {out} ({_origin('out')})")
    if chosen:
        echo("; ".join(chosen), err=True)


def check_dataset(name: str, data: str, *, say: bool = True) -> None:
    """Where the command line names no dataset, print which was chosen, and check that something is there.

    Args:
        name: Name of the command's argument.
        data: Its value.
        say: Whether to print it: one of several processes does.

    Raises:
        UsageError: The chosen folder does not exist or is empty.
    """
    if not _is_open(name):
        return
    from pipeline import UsageError, open_store

    if not open_store(data).names():
        looked = (
            f"nothing is at {data}, which ${_VARIABLE} names"
            if _from_variable(name)
            else f"${_VARIABLE} is not set, and there is no dataset at {data}"
        )
        raise UsageError(f"no dataset was named, {looked}; name one, or make it with `alexnet-prep shard`")
    if say:
        echo(f"dataset: {data} ({_origin(name)})", err=True)


def _is_open(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.COMMANDLINE


def _from_variable(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.ENVIRONMENT


def _origin(name: str) -> str:
    return f"${_VARIABLE}" if _from_variable(name) else "by default"
