"""Arguments, options and groups of options that commands share, and the folders that are their defaults."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cli.common.commands import section
from cli.common.console import echo
from cli.common.outputs import OutputFile
from pipeline.host import usable_cores

if TYPE_CHECKING:
    from trainer.data import LoaderOptions

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


data_options = section(
    "Reading data",
    click.option(
        "--backend",
        type=click.Choice(["auto", "dali", "threads"]),
        default="auto",
        show_default=True,
        help="What decodes and augments images: NVIDIA DALI, or threads on the CPU. auto takes DALI where "
        "a GPU decodes faster than the CPU would.",
    ),
    click.option(
        "--decode-device",
        type=click.Choice(["auto", "cpu", "gpu"]),
        default="auto",
        show_default=True,
        help="Device on which DALI decodes.  auto is the one that trains.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        help="CPU threads of the data loader in each process.  [default: its share of the cores]",
    ),
    click.option(
        "--loader-workers",
        type=click.IntRange(0),
        metavar="N",
        help="Worker processes among which --backend threads divides them; 0 for none.  [default: none up to "
        "8 threads, beyond that one for every 8]",
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
        options["backend"],
        options["decode_device"],
        options["threads"],
        options["loader_workers"],
        ReadOptions(not options["no_mmap"], cache, limit),
    )


failure_options = section(
    "Processes",
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


validation_options = section(
    "Validation",
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


saving_options = section(
    "Checkpoints",
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
        "--keep-checkpoints",
        type=click.IntRange(1),
        default=2,
        show_default=True,
        metavar="N",
        help="Number of newest checkpoints to keep; best.pt is always kept.",
    ),
)
"""Options for when checkpoints are written, and how many are kept."""


debugging_options = section(
    "Trying out",
    click.option(
        "--max-steps", type=click.IntRange(1), metavar="N", help="Stop after N steps (weight updates)."
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
        type=OutputFile(),
        metavar="FILE",
        help="Write a Chrome trace of a few steps to FILE.",
    ),
)
"""Options to try out a run."""

weights_option = section(
    "Network",
    click.option(
        "--weights",
        type=click.Choice(["ema", "model"]),
        help="Weights of checkpoints that hold averaged (EMA) ones beside the model's own.  [default: ema]",
    ),
)
"""Which weights of a checkpoint are used."""

classes_by_option = section(
    "Network",
    click.option(
        "--classes-by",
        type=click.Choice(["name", "order"]),
        default="name",
        show_default=True,
        help="How classes of network and data are matched: by WNID or other id, or else by name (name), or "
        "class i of the data is output i of the network (order).",
    ),
)
"""How the classes of networks and a dataset are matched."""

precision_option = section(
    "Network",
    click.option(
        "--precision",
        type=click.Choice(["float32", "tf32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="Precision of the network, whatever it was trained in; tf32 needs a GPU.",
    ),
)
"""Precision in which a trained network is used."""

workers_option = section(
    "Work",
    click.option(
        "--workers",
        type=click.IntRange(1, 1024),
        default=usable_cores,
        help="Number of worker processes; the output does not depend on it.  [default: all cores]",
    ),
)
"""Worker processes, by default one per usable core."""

max_megapixels_option = section(
    "Images",
    click.option(
        "--max-megapixels",
        default=100.0,
        show_default=True,
        type=click.FloatRange(0, min_open=True),
        help="Skip larger images, before memory is allocated for them.",
    ),
)
"""Size above which images are skipped."""

max_bad_option = section(
    "Images",
    click.option(
        "--max-bad",
        default=0.01,
        show_default=True,
        type=click.FloatRange(0, 1),
        help="Largest share of undecodable images, for shard also of damaged archives, above which it fails.",
    ),
)
"""Largest share of undecodable images, and of damaged archives."""

take_over_option = section(
    "Output",
    click.option(
        "--take-over",
        is_flag=True,
        help="Go on in place of the process that is working in the folder, which then stops.",
    ),
)
"""Take over the lock of a living process."""


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
