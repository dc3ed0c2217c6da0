"""Options and groups of options that commands share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.common.outputs import OutputFile
from pipeline.host import usable_cores

if TYPE_CHECKING:
    from trainer.data import LoaderOptions

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


def option_group(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds options to a command, in the order given."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


data_options = option_group(
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
)
"""The options that `loader_options_of` reads."""


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


failure_options = option_group(
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
        help="Time after which a process that keeps the others waiting is reported, and the run stopped.",
    ),
)
"""Options for what happens when a process is lost or hangs."""


validation_options = option_group(
    click.option(
        "--val-every-steps",
        type=click.IntRange(1),
        metavar="N",
        help="Also validate within epochs, every N steps (weight updates).",
    ),
    click.option(
        "--patience",
        type=click.IntRange(1),
        metavar="N",
        help="End the run after N validations in a row, of either kind, without a better top-1 than before.",
    ),
    click.option(
        "--no-val",
        is_flag=True,
        help="Do not validate, as where DATA has no split val; the last checkpoint then counts as the best.",
    ),
)
"""Options for when a run validates, and when it ends for want of improvement."""


saving_options = option_group(
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
)
"""Options for when checkpoints are written, and how many are kept."""


debugging_options = option_group(
    click.option("--steps", type=click.IntRange(1), metavar="N", help="Stop after N steps (weight updates)."),
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
        type=OutputFile(),
        metavar="FILE",
        help="Write a Chrome trace of a few steps to FILE.",
    ),
)
"""Options to try out a run."""

weights_option = click.option(
    "--weights",
    type=click.Choice(["ema", "model"]),
    help="Weights of checkpoints that hold averaged (EMA) ones beside the model's own.  [default: ema]",
)
"""Which weights of a checkpoint are used."""

classes_by_option = click.option(
    "--classes-by",
    type=click.Choice(["name", "order"]),
    default="name",
    show_default=True,
    help="How classes of network and data are matched: by WNID or other id, or else by name (name), or class "
    "i of the data is output i of the network (order).",
)
"""How the classes of networks and a dataset are matched."""

precision_option = click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Precision of the network, whatever it was trained in; tf32 needs a GPU.",
)
"""Precision in which a trained network is used."""

workers_option = click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    default=usable_cores,
    help="Number of worker processes; the output does not depend on it.  [default: all cores]",
)
"""Worker processes, by default one per usable core."""

max_megapixels_option = click.option(
    "--max-megapixels",
    default=100.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Skip larger images, before memory is allocated for them.",
)
"""Size above which images are skipped."""

max_bad_option = click.option(
    "--max-bad",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Largest share of undecodable images, 0 to 1; above it the job fails.",
)
"""Largest share of undecodable images."""

take_over_option = click.option(
    "--take-over",
    is_flag=True,
    help="Go on in place of the process that is working in the folder, which then stops.",
)
"""Take over the lock of a living process."""
