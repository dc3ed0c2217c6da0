"""Groups of options for data, cluster, checkpoints and debugging, and the records made of their values."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.host import usable_cores

if TYPE_CHECKING:
    from trainer.data import LoaderOptions
    from trainer.distributed.launch import Cluster
    from trainer.training.options import Debugging, Saving

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Size(click.ParamType[int]):
    """Option type for a number of bytes, with the suffix K, M, G or T for powers of 1000: `200G`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the text into a number of bytes."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(value).strip().upper())
        if found is None:
            self.fail(f"{value!r} is not a size; give bytes, such as 200G or 500000000", param, ctx)
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
                help="Where images are decoded and augmented: both on the CPU (cpu), decoded on the CPU and "
                "augmented on the GPU (hybrid), or both on the GPU (gpu).",
            ),
            click.option(
                "--threads",
                type=click.IntRange(1),
                help="CPU threads of the data loader in each process.  [default: its share of the cores]",
            ),
            click.option(
                "--no-mmap",
                is_flag=True,
                help="Read shards with read() instead of mapping them into memory; for network file systems.",
            ),
            click.option(
                "--cache",
                type=click.Path(path_type=Path, file_okay=False),
                metavar="DIR",
                help="Copy shards to this local folder before they are read, in the order of the epoch.",
            ),
            click.option(
                "--cache-limit",
                type=Size(),
                help="Maximum size of the --cache folder in bytes, such as 200G.  [default: no limit]",
            ),
        ]
    ):
        command = option(command)
    return command


def loader_options_of(options: dict[str, Any]) -> "LoaderOptions":
    """Return the loader options that the options of `data_options` describe.

    Raises:
        UsageError: --cache-limit is given without --cache.
    """
    from pipeline import ReadOptions, UsageError
    from trainer.data import LoaderOptions

    cache, limit = options["cache"], options["cache_limit"]
    if limit is not None and cache is None:
        raise UsageError("--cache-limit needs --cache with the folder to limit")
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
                help="Number of hosts; run the same command on each. --gpus and --cpus count the processes "
                "of one host.",
            ),
            click.option(
                "--rendezvous",
                default="",
                metavar="HOST:PORT",
                help="Address of one of the hosts, where all of them meet; needed with --nodes.",
            ),
            click.option(
                "--join-timeout",
                type=click.IntRange(1),
                default=600,
                show_default=True,
                metavar="SECONDS",
                help="Time that the hosts wait for each other at the start and after a restart.",
            ),
            click.option(
                "--max-restarts",
                type=click.IntRange(0),
                default=0,
                show_default=True,
                metavar="N",
                help="Number of restarts from the last checkpoint after a process is lost.",
            ),
            click.option(
                "--hang-timeout",
                type=click.FloatRange(1),
                default=600,
                show_default=True,
                metavar="SECONDS",
                help="Time after which a process that keeps the others waiting is reported, and the run "
                "stopped.",
            ),
        ]
    ):
        command = option(command)
    return command


def cluster_of(options: dict[str, Any]) -> "Cluster":
    """Return the cluster that the options of `cluster_options` describe.

    Raises:
        UsageError: --nodes above 1 without --rendezvous, or --rendezvous without --nodes.
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
                help="Also write last.pt every N steps (weight updates).",
            ),
            click.option(
                "--checkpoint-minutes",
                type=click.FloatRange(0),
                default=15,
                show_default=True,
                metavar="M",
                help="Also write last.pt every M minutes; 0 writes it at the end of each epoch only.",
            ),
            click.option(
                "--keep",
                type=click.IntRange(1),
                default=2,
                show_default=True,
                metavar="N",
                help="Number of newest checkpoints to keep; best.pt is always kept.",
            ),
        ]
    ):
        command = option(command)
    return command


def saving_of(options: dict[str, Any]) -> "Saving":
    """Return the checkpoint settings that the options of `saving_options` describe."""
    from trainer.training.options import Saving

    return Saving(options["checkpoint_steps"], options["checkpoint_minutes"] or None, options["keep"])


def debugging_options(command: F) -> F:
    """Add the options that `debugging_of` reads."""
    for option in reversed(
        [
            click.option(
                "--steps", type=click.IntRange(1), metavar="N", help="Stop after N steps (weight updates)."
            ),
            click.option(
                "--synthetic",
                is_flag=True,
                help="Train on one batch of noise, to measure training without data loading.",
            ),
            click.option(
                "--overfit-batch",
                is_flag=True,
                help="Train on the first batch only; a working setup brings its loss close to 0.",
            ),
            click.option(
                "--profile",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="Write a Chrome trace of a few steps to FILE.",
            ),
        ]
    ):
        command = option(command)
    return command


def debugging_of(options: dict[str, Any]) -> "Debugging":
    """Return the debugging settings that the options of `debugging_options` describe.

    Raises:
        UsageError: --synthetic and --overfit-batch are both given.
    """
    from trainer.training.options import Debugging

    return Debugging(options["synthetic"], options["overfit_batch"], options["steps"], options["profile"])


def workers_option(command: F) -> F:
    """Add --workers: worker processes, by default one per usable core."""
    return click.option(
        "--workers",
        type=click.IntRange(1, 1024),
        default=usable_cores,
        help="Number of worker processes; the output does not depend on it.  [default: all cores]",
    )(command)


def max_megapixels_option(command: F) -> F:
    """Add --max-megapixels: larger images are skipped."""
    return click.option(
        "--max-megapixels",
        default=100.0,
        show_default=True,
        type=click.FloatRange(0, min_open=True),
        help="Skip larger images, before memory is allocated for them.",
    )(command)


def max_bad_option(command: F) -> F:
    """Add --max-bad: largest share of undecodable images."""
    return click.option(
        "--max-bad",
        default=0.01,
        show_default=True,
        type=click.FloatRange(0, 1),
        help="Largest share of undecodable images, 0 to 1; above it the job fails.",
    )(command)
