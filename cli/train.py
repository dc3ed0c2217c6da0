"""`alexnet-train`: train a network on a dataset of shards."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from cli.common.console import one_line_errors, progress_bar, require_dali
from cli.common.options import (
    cluster_of,
    cluster_options,
    data_options,
    debugging_of,
    debugging_options,
    loader_options_of,
    saving_of,
    saving_options,
)
from cli.status import status

if TYPE_CHECKING:
    from pipeline import Dataset
    from trainer import DistEnv, Recipe, TrainJob, TrainResult
    from trainer.distributed.env import Processes
    from trainer.distributed.launch import Cluster

_DEFAULT_RECIPE = "paper"


class _TrainOrStatus(click.Command):
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
@click.argument("data")
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
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/RECIPE]")
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
@cluster_options
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
    help="Do not train: print the resolved recipe, steps and memory, and read the first batches.",
)
@click.option(
    "--bench",
    is_flag=True,
    help="Do not train: measure the speed of loader, model and gradient exchange, alone and together.",
)
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
    **options: Any,
) -> None:
    """Train a network on DATA.

    DATA is a dataset made by `alexnet-prep shard`: a folder, or an s3:// or gs:// URL. Without --gpus or
    --cpus, training uses all visible GPUs, or one CPU process where there are none. The recipe,
    metrics.jsonl, and the checkpoints last.pt and best.pt are written to --out. On SIGTERM or SIGUSR1 the run
    writes a checkpoint and exits with code 75; --resume continues it.

    `alexnet-train status RUN` shows the progress of a run. (Write ./status for a dataset in a folder of that
    name.)
    """
    require_dali()
    _keep_compiled()  # before torch is imported, which reads the variable
    from pipeline import Dataset, UsageError
    from trainer import load_recipe
    from trainer.callbacks.tensorboard import require_tensorboard
    from trainer.distributed.env import adopt_slurm, choose_processes, launched_outside
    from trainer.distributed.launch import launch
    from trainer.distributed.stop_signals import STOPPED
    from trainer.runs.run_folder import RECIPE_FILE, is_run
    from trainer.training.options import TrainJob
    from trainer.training.setup import local_batch_size

    if resume and out is None:
        raise UsageError("--resume needs --out with the run's folder, such as --out runs/paper")
    if grad_compression:
        overrides += (f"grad_compression={grad_compression}",)
    if resume and recipe is None and out is not None and is_run(out):
        chosen = load_recipe(str(out / RECIPE_FILE), overrides)
    else:
        chosen = load_recipe(recipe or _DEFAULT_RECIPE, overrides)
        _say_scaling(load_recipe(recipe or _DEFAULT_RECIPE), chosen, overrides)
    adopt_slurm()
    if tensorboard:
        require_tensorboard()
    processes = choose_processes(gpus, cpus)
    job = TrainJob(
        data,
        out or Path("runs") / chosen.name,
        chosen,
        resume or "no",
        loader_options_of(options),
        saving_of(options),
        debugging_of(options),
        cuda_graphs,
        options["hang_timeout"],
    )
    cluster = cluster_of(options)
    if bench or dry_run:
        _refuse_idle(job, tensorboard, "--bench" if bench else "--dry-run")
    _check(job, processes)
    dataset = Dataset.open(data)  # report an unusable dataset before any process starts
    if not launched_outside():
        if verify_shards:
            _verify(dataset)
        local_batch_size(chosen, processes.count * cluster.nodes)
        doing = "measuring" if bench else "planning" if dry_run else "training"
        click.echo(f"{doing} on {processes.reason}", err=True)
    if dry_run:
        _dry_run(job, processes.count * cluster.nodes)
        return
    if bench:
        _bench(processes, job, cluster)
        return
    result = launch(
        processes, _train, job, tensorboard, verify_shards and launched_outside(), cluster=cluster
    )
    if result is not None and result.ending == "stopped":
        sys.exit(STOPPED)


def _check(job: "TrainJob", processes: "Processes") -> None:
    """Raise `UsageError` for options that do not fit the processes or each other."""
    from pipeline import UsageError
    from trainer.distributed.comm_hooks import check_compression

    if job.cuda_graphs and (processes.kind == "cpu" or not job.recipe.compile):
        raise UsageError("--cuda-graphs needs GPUs and a recipe that compiles (--set compile=true)")
    if job.debugging.one_batch and job.resume != "no":
        raise UsageError(f"{job.debugging.one_batch} cannot be resumed; leave --resume out")
    check_compression(job.recipe, processes.kind)


def _keep_compiled() -> None:
    """Keep compiled kernels in the user's cache folder: torch's default, /tmp, may not outlive a reboot."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / "alexnet-toolkit" / "compiled"))


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


def _say_scaling(written: "Recipe", chosen: "Recipe", overrides: tuple[str, ...]) -> None:
    """Print how the learning rate was scaled for another batch size, unless --set gave it explicitly."""
    if written.lr != chosen.lr and not any(text.partition("=")[0].strip() == "lr" for text in overrides):
        click.echo(
            f"lr {written.lr:g} for batch_size {written.batch_size} becomes {chosen.lr:g} for "
            f"{chosen.batch_size} (scaling: {chosen.scaling})",
            err=True,
        )


def _train(env: "DistEnv", job: "TrainJob", tensorboard: bool, verify: bool) -> "TrainResult":
    """Entry point of each process: train; the first process prints and writes the run's files.

    With `verify`, one process of each host first compares the checksums of the shards.
    """
    from cli.common.live import ConsoleCallback
    from pipeline import Dataset
    from trainer import train
    from trainer.callbacks.base import Callback, Callbacks
    from trainer.callbacks.tensorboard import TensorBoardCallback
    from trainer.distributed.failures import raise_together
    from trainer.runs.status import StatusCallback

    if verify:
        dataset = Dataset.open(job.data)
        raise_together(lambda: _verify(dataset) if env.local_rank == 0 else None, env)
    with ConsoleCallback(job.recipe.epochs) as console:
        callbacks: list[Callback] = [console, StatusCallback(job.out)]
        callbacks += [TensorBoardCallback(job.out)] if tensorboard else []
        return train(env, job, Callbacks(callbacks))


def _verify(dataset: "Dataset") -> None:
    """Compare the checksums of all shards, with a progress bar on a terminal."""
    from pipeline import verify_checksums

    with progress_bar("checking shards", "bytes") as show:
        verify_checksums(dataset, progress=show)


def _dry_run(job: "TrainJob", processes: int) -> None:
    """Print the plan of the run: recipe, steps, memory, data."""
    from cli.plan import print_plan
    from trainer.training.dry_run import plan

    print_plan(plan(job, processes))


def _bench(processes: "Processes", job: "TrainJob", cluster: "Cluster") -> None:
    """Measure loader, model and gradient exchange, and print the table."""
    from cli.bench import print_measured
    from trainer.distributed.env import first_of_all
    from trainer.distributed.launch import launch
    from trainer.training import benchmark

    result = launch(processes, benchmark.measure, job, benchmark.SECONDS, cluster=cluster)
    if result is not None and first_of_all():
        print_measured(result)
