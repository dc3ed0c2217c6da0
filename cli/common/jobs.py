"""Options of the commands that train, or try training: what they share, and their job."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from cli.common.commands import option_group, section
from cli.common.console import echo
from cli.common.options import RUNS, check_dataset, data_argument, data_options, loader_options_of

if TYPE_CHECKING:
    from trainer import Recipe, TrainJob, Validation
    from trainer.distributed.env import Processes
    from trainer.training.options import Resume

_DEFAULT_RECIPE = "paper"


def _recipes(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a recipe, else a path."""
    names = sorted(path.name.removesuffix(".toml") for path in (files("trainer") / "recipes").iterdir())
    return [CompletionItem(name) for name in names if name.startswith(begun)] or [
        CompletionItem(begun, type="file")
    ]


job_options = option_group(
    data_argument,
    section(
        "Recipe",
        click.option(
            "--recipe",
            shell_complete=_recipes,
            help="Name of a recipe (paper, source, modern, small, demo) or path of a .toml file.  "
            f"[default: {_DEFAULT_RECIPE}]",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a setting of the recipe; repeatable.",
        ),
    ),
    section(
        "Processes",
        click.option("--gpus", type=int, help="Number of GPUs to train on.  [default: all visible GPUs]"),
        click.option("--cpus", type=int, help="Number of CPU processes to train in, instead of GPUs."),
        click.option(
            "--cuda-graphs", is_flag=True, help="Let torch.compile record CUDA graphs; for small batches."
        ),
    ),
    data_options,
)
"""The options that `new_job` reads."""


def new_job(
    doing: str,
    options: dict[str, Any],
    *,
    out: Path | None = None,
    resume: "Resume" = "no",
    validation: "Validation | None" = None,
    **settings: Any,
) -> "tuple[TrainJob, Processes]":
    """Return the checked job that the options of `job_options` describe, and its processes.

    Prints which dataset and processes were chosen, where the options leave that open.

    Args:
        doing: What the command does, such as "training".
        options: Values of `job_options`.
        out: Folder of the run; None for the recipe's name below `runs`.
        resume: Whether to continue the run in that folder, with its recipe and validation where the options
            give none.
        validation: When to validate; None for the default.
        settings: Other fields of the job.

    Raises:
        UsageError: Recipe, data and processes do not fit together, or are not there.
    """
    from pipeline import Dataset
    from trainer import load_recipe
    from trainer.distributed.env import adopt_slurm, choose_processes, first_of_all, launched_outside
    from trainer.runs.records import Validation
    from trainer.runs.run_folder import is_run
    from trainer.training.checks import check_job
    from trainer.training.options import TrainJob

    name, overrides = options["recipe"], options["overrides"]
    if out is None and resume != "no":
        out = RUNS / load_recipe(name or _DEFAULT_RECIPE).name
    resumed = None if resume == "no" or out is None or not is_run(out) else out
    recipe = _choose_recipe(name, overrides, resumed)
    adopt_slurm()
    processes = choose_processes(options["gpus"], options["cpus"])
    check_dataset("data", options["data"], say=first_of_all())
    job = TrainJob(
        data=options["data"],
        out=out or RUNS / recipe.name,
        recipe=recipe,
        resume=resume,
        validation=_choose_validation(validation or Validation(), resumed),
        loader_options=loader_options_of(options),
        cuda_graphs=options["cuda_graphs"],
        **settings,
    )
    dataset = Dataset.open(job.data)
    if not launched_outside():  # reports mistakes before any process starts
        check_job(job, dataset, processes.kind, processes.count)
        echo(f"{doing} on {processes.reason}", err=True)
    return job, processes


def _choose_recipe(name: str | None, overrides: tuple[str, ...], resumed: Path | None) -> "Recipe":
    """Return the recipe of the run that is resumed, where none is named, or another one.

    Prints how the learning rate was scaled for another batch size, unless --set gave it explicitly.
    """
    from trainer import load_recipe
    from trainer.runs.run_folder import RECIPE_FILE

    if resumed is not None and name is None:
        return load_recipe(str(resumed / RECIPE_FILE), overrides)
    written = load_recipe(name or _DEFAULT_RECIPE)
    chosen = load_recipe(name or _DEFAULT_RECIPE, overrides)
    if written.lr != chosen.lr and not any(text.partition("=")[0].strip() == "lr" for text in overrides):
        echo(
            f"lr {written.lr:g} for batch_size {written.batch_size} becomes {chosen.lr:g} for "
            f"{chosen.batch_size} (scaling: {chosen.scaling})",
            err=True,
        )
    return chosen


def _choose_validation(given: "Validation", resumed: Path | None) -> "Validation":
    """Return how to validate as is given, or where nothing is, as the run that is resumed does."""
    from trainer.runs.run_folder import read_validation

    return given if resumed is None or given != type(given)() else read_validation(resumed)
