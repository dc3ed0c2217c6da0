"""Options that several commands share: how the data comes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from trainer.data import LoaderOptions
    from trainer.distributed.launch import Cluster
    from trainer.training.options import Debugging, Saving

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Size(click.ParamType[int]):
    """Bytes, with K, M, G or T for powers of a thousand: `200G`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(value).strip().upper())
        if found is None:
            self.fail(f"{value!r} is no size; give bytes, such as 200G or 500000000", param, ctx)
        return int(float(found[1]) * _UNITS[found[2]])


def data_options(command: F) -> F:
    """Add the options that `loader_options_of` reads."""
    for option in reversed(
        [
            click.option(
                "--placement",
                type=click.Choice(["auto", "cpu", "hybrid", "gpu"]),
                default="auto",
                show_default=True,
                help="Where images are decoded and augmented: all on the CPU, decoded there and augmented "
                "on the GPU (hybrid), or all on the GPU.",
            ),
            click.option(
                "--threads",
                type=click.IntRange(1),
                help="CPU threads of each process's loader.  [default: its share of the cores]",
            ),
            click.option(
                "--no-mmap",
                is_flag=True,
                help="Read shards instead of mapping them; for network file systems.",
            ),
            click.option(
                "--cache",
                type=click.Path(path_type=Path, file_okay=False),
                metavar="DIR",
                help="Bring shards to this local folder first, in the order of the epoch.",
            ),
            click.option(
                "--cache-limit",
                type=Size(),
                help="Bytes that DIR may hold, such as 200G.  [default: no limit]",
            ),
        ]
    ):
        command = option(command)
    return command


def loader_options_of(options: dict[str, Any]) -> "LoaderOptions":
    """What these options ask for.

    Raises:
        UsageError: a limit of a cache that there is not.
    """
    from pipeline import ReadOptions, UsageError
    from trainer.data import LoaderOptions

    cache, limit = options["cache"], options["cache_limit"]
    if limit is not None and cache is None:
        raise UsageError("--cache-limit needs --cache with the folder that it limits")
    return LoaderOptions(
        options["placement"], options["threads"], ReadOptions(not options["no_mmap"], cache, limit)
    )


def cluster_options(command: F) -> F:
    """Add the options that `cluster_of` reads, and --hang-timeout."""
    for option in reversed(
        [
            click.option(
                "--nodes",
                type=click.IntRange(1),
                default=1,
                show_default=True,
                metavar="N",
                help="Train on so many hosts, with --gpus or --cpus processes on each: one command for all.",
            ),
            click.option(
                "--rendezvous",
                default="",
                metavar="HOST:PORT",
                help="Where the hosts meet, one of them.",
            ),
            click.option(
                "--join-timeout",
                type=click.IntRange(1),
                default=600,
                show_default=True,
                metavar="SECONDS",
                help="How long hosts wait for each other.",
            ),
            click.option(
                "--max-restarts",
                type=click.IntRange(0),
                default=0,
                show_default=True,
                metavar="N",
                help="Times to start again from the last checkpoint when a process is lost.",
            ),
            click.option(
                "--hang-timeout",
                type=click.FloatRange(1),
                default=600,
                show_default=True,
                metavar="SECONDS",
                help="After which a process that keeps the others waiting is named and the run ended.",
            ),
        ]
    ):
        command = option(command)
    return command


def cluster_of(options: dict[str, Any]) -> "Cluster":
    """What these options ask for.

    Raises:
        UsageError: hosts without a meeting place, or the other way round.
    """
    from trainer.distributed.launch import Cluster

    return Cluster(options["nodes"], options["rendezvous"], options["join_timeout"], options["max_restarts"])


def saving_options(command: F) -> F:
    """Add the options that `saving_of` reads."""
    for option in reversed(
        [
            click.option(
                "--checkpoint-steps",
                type=click.IntRange(1),
                metavar="N",
                help="Write last.pt every N updates too.",
            ),
            click.option(
                "--checkpoint-minutes",
                type=click.FloatRange(0),
                default=15,
                show_default=True,
                metavar="M",
                help="Write last.pt every M minutes too; 0: at the end of epochs alone.",
            ),
            click.option(
                "--keep",
                type=click.IntRange(1),
                default=2,
                show_default=True,
                metavar="N",
                help="Checkpoints that stay, the newest; best.pt stays besides.",
            ),
        ]
    ):
        command = option(command)
    return command


def saving_of(options: dict[str, Any]) -> "Saving":
    """What these options ask for."""
    from trainer.training.options import Saving

    return Saving(options["checkpoint_steps"], options["checkpoint_minutes"] or None, options["keep"])


def debugging_options(command: F) -> F:
    """Add the options that `debugging_of` reads."""
    for option in reversed(
        [
            click.option("--steps", type=click.IntRange(1), metavar="N", help="Stop after N updates."),
            click.option(
                "--synthetic",
                is_flag=True,
                help="Train on one batch of noise, to see what training takes without its data.",
            ),
            click.option(
                "--overfit-batch",
                is_flag=True,
                help="Train on the first batch alone: its loss must go to nothing.",
            ),
            click.option(
                "--profile",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="Write a Chrome trace of a few updates.",
            ),
        ]
    ):
        command = option(command)
    return command


def debugging_of(options: dict[str, Any]) -> "Debugging":
    """What these options ask for.

    Raises:
        UsageError: two that exclude each other.
    """
    from trainer.training.options import Debugging

    return Debugging(options["synthetic"], options["overfit_batch"], options["steps"], options["profile"])
