"""`alexnet-train`: train a network on a dataset of shards."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from cli.common.console import echo, one_line_errors, progress_bar, require_dali
from cli.common.defaults import RUNS, check_dataset, data_argument
from cli.common.interrupts import keeping
from cli.common.options import (
    data_options,
    debugging_options,
    failure_options,
    loader_options_of,
    saving_options,
    take_over_option,
    validation_options,
)
from cli.common.outputs import check_outputs
from cli.common.streams import Command, check_printed, safe_streams, writes_files
from cli.status import status

if TYPE_CHECKING:
    from pipeline import Dataset
    from trainer import DistEnv, Recipe, TrainJob, TrainResult, Validation

_DEFAULT_RECIPE = "paper"


class _TrainOrStatus(Command):
    """The command `alexnet-train DATA ...`, with the subcommand `alexnet-train status RUN`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of `status` where that is the first argument, else the training command's."""
        if args[:1] == ["status"]:
            return status.make_context(f"{info_name} status", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the context belongs to."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(
    cls=_TrainOrStatus, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-train")
@data_argument
@click.option(
    "--recipe",
    help="Name of a recipe (paper, source, modern, small, demo) or path of a .toml file.  "
    f"[default: {_DEFAULT_RECIPE}]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the recipe; repeatable.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/RECIPE]"
)
@click.option("--gpus", type=int, help="Number of GPUs to train on.  [default: all visible GPUs]")
@click.option("--cpus", type=int, help="Number of CPU processes to train in, instead of GPUs.")
@click.option(
    "--resume",
    type=click.Choice(["auto", "must"]),
    is_flag=False,
    flag_value="must",
    help="Continue the run in --out from its last checkpoint. must (the value where none is given) requires "
    "such a run; auto starts a new one where there is none.",
)
@failure_options
@validation_options
@saving_options
@data_options
@debugging_options
@click.option(
    "--grad-compression",
    type=click.Choice(["none", "bf16", "powersgd"]),
    help="Compression of the gradients sent between processes; short for --set grad_compression=….",
)
@click.option("--cuda-graphs", is_flag=True, help="Let torch.compile record CUDA graphs; for small batches.")
@click.option(
    "--tensorboard", is_flag=True, help="Also write TensorBoard logs, to the folder tensorboard in --out."
)
@click.option("--verify-shards", is_flag=True, help="Compare the checksums of all shards before training.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Do not train: print the resolved recipe, processes and steps, and read the first batches.",
)
@click.option(
    "--bench",
    is_flag=True,
    help="Do not train: measure the speed of loader, model and gradient exchange, alone and together.",
)
@click.option(
    "--force", is_flag=True, help="Replace the run in --out, and the file of --profile; other files stay."
)
@take_over_option
@one_line_errors
def main(
    data: str,
    recipe: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    gpus: int | None,
    cpus: int | None,
    resume: Literal["auto", "must"] | None,
    grad_compression: str | None,
    cuda_graphs: bool,
    tensorboard: bool,
    verify_shards: bool,
    dry_run: bool,
    bench: bool,
    force: bool,
    take_over: bool,
    **options: Any,
) -> None:
    """Train a network on DATA.

    DATA is a dataset made by `alexnet-prep shard`: a folder, or an s3:// or gs:// URL; by default the one
    that $ALEXNET_DATA names, else shards. Without --gpus or
    --cpus, training uses all visible GPUs, or one CPU process where there are none. The recipe,
    metrics.jsonl, and the checkpoints last.pt and best.pt are written to --out. On SIGTERM or SIGUSR1 the run
    writes a checkpoint and exits with code 75; --resume continues it.

    `alexnet-train status RUN` shows the progress of a run. (Write ./status for a dataset in a folder of that
    name.)
    """
    check_outputs(force)
    require_dali()
    from cli.bench import print_measured
    from cli.plan import print_plan
    from pipeline import Dataset, UsageError
    from trainer.callbacks.tensorboard import require_tensorboard
    from trainer.distributed.env import adopt_slurm, choose_processes, first_of_all, launched_outside
    from trainer.distributed.launch import launch
    from trainer.distributed.stop_signals import STOPPED
    from trainer.training import benchmark
    from trainer.training.checks import check_job
    from trainer.training.dry_run import plan
    from trainer.training.options import Debugging, Saving, TrainJob

    if resume and out is None:
        raise UsageError("--resume needs --out with the run's folder, such as --out runs/paper")
    if grad_compression:
        overrides += (f"grad_compression={grad_compression}",)
    chosen = _choose_recipe(recipe, overrides, out if resume else None)
    adopt_slurm()
    if tensorboard:
        require_tensorboard()
    processes = choose_processes(gpus, cpus)
    check_dataset("data", data, say=first_of_all())
    job = TrainJob(
        data=data,
        out=out or RUNS / chosen.name,
        recipe=chosen,
        resume=resume or "no",
        force=force,
        take_over=take_over,
        loader_options=loader_options_of(options),
        validation=_choose_validation(options, out if resume else None),
        saving=Saving(options["checkpoint_steps"], options["checkpoint_minutes"] or None, options["keep"]),
        debugging=Debugging(
            options["synthetic"], options["overfit_batch"], options["steps"], options["profile"]
        ),
        cuda_graphs=cuda_graphs,
        hang_seconds=options["hang_timeout"],
    )
    if bench or dry_run:
        _refuse_idle(job, tensorboard, "--bench" if bench else "--dry-run")
    dataset = Dataset.open(data)
    if not launched_outside():  # reports mistakes before any process starts
        check_job(job, dataset, processes.kind, processes.count)
        if verify_shards:
            _verify(dataset)
        doing = "measuring" if bench else "planning" if dry_run else "training"
        echo(f"{doing} on {processes.reason}", err=True)
    restarts = options["max_restarts"]
    if dry_run:
        print_plan(plan(job, processes))
    elif bench:
        measured = launch(processes, benchmark.measure, job, benchmark.SECONDS, max_restarts=restarts)
        if measured is not None and first_of_all():
            print_measured(measured)
    else:
        writes_files()
        verify = verify_shards and launched_outside()
        with keeping(lambda: _kept(job.out)):
            result = launch(processes, _train, job, tensorboard, verify, max_restarts=restarts)
        if result is not None and result.ending == "stopped":
            sys.exit(STOPPED)


def _kept(out: Path) -> str:
    """Describe how a run that Ctrl-C has ended can be continued."""
    from trainer.runs.checkpoint import LAST

    return f"--out {out} --resume continues from the last checkpoint" if (out / LAST).exists() else ""


def _refuse_idle(job: "TrainJob", tensorboard: bool, instead: str) -> None:
    """Raise `UsageError` for options that have no effect with `instead`, which is --bench or --dry-run."""
    from pipeline import UsageError

    given = {
        "--resume": job.resume != "no",
        "--steps": job.debugging.steps,
        "--profile": job.debugging.profile,
        job.debugging.one_batch: job.debugging.one_batch,
        "--tensorboard": tensorboard,
    }
    if idle := [name for name, value in given.items() if value]:
        raise UsageError(
            f"{instead} does not train, so {idle[0]} would have no effect; leave one of them out"
        )


def _choose_recipe(name: str | None, overrides: tuple[str, ...], resumed: Path | None) -> "Recipe":
    """Return the recipe of the run in the folder `resumed`, or where none is named or there, another one.

    Prints how the learning rate was scaled for another batch size, unless --set gave it explicitly.
    """
    from trainer import load_recipe
    from trainer.runs.run_folder import RECIPE_FILE, is_run

    if resumed is not None and name is None and is_run(resumed):
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


def _choose_validation(options: dict[str, Any], resumed: Path | None) -> "Validation":
    """Return how to validate as the options say, or where none is given, as the run in `resumed` does."""
    from trainer.runs.records import Validation
    from trainer.runs.run_folder import is_run, read_validation

    given = Validation(not options["no_val"], options["val_every_steps"], options["patience"])
    if given == Validation() and resumed is not None and is_run(resumed):
        return read_validation(resumed)
    return given


def _train(env: "DistEnv", job: "TrainJob", tensorboard: bool, verify: bool) -> "TrainResult":
    """Entry point of each process: train; the first process prints and writes the run's files.

    With `verify`, one process of each host first compares the checksums of the shards.
    """
    from cli.common.live import ConsoleCallback
    from pipeline import Dataset
    from trainer import train
    from trainer.callbacks.status import StatusCallback
    from trainer.callbacks.tensorboard import TensorBoardCallback
    from trainer.distributed.failures import raise_together

    with safe_streams(), ConsoleCallback(job.recipe.epochs) as console:
        if verify:
            dataset = Dataset.open(job.data)
            raise_together(lambda: _verify(dataset) if env.local_rank == 0 else None, env)
        logs = [TensorBoardCallback(job.out)] if tensorboard else []
        result = train(env, job, [console, StatusCallback(job.out), *logs])
        check_printed()
    return result


def _verify(dataset: "Dataset") -> None:
    """Compare the checksums of all shards, with a progress bar on a terminal."""
    from pipeline import verify_checksums

    with progress_bar("checking shards", "bytes") as show:
        verify_checksums(dataset, on_progress=show)
