"""`alexnet-train`: train a network on a dataset of shards."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.common.commands import CONTEXT, Command, section
from cli.common.console import one_line_errors, progress_bar
from cli.common.interrupts import keeping
from cli.common.jobs import job_options, new_job
from cli.common.options import (
    debugging_options,
    failure_options,
    saving_options,
    take_over_option,
    validation_options,
)
from cli.common.outputs import check_outputs
from cli.common.streams import check_printed, safe_streams, writes_files

if TYPE_CHECKING:
    from pipeline import Dataset
    from trainer import DistEnv, TrainJob, TrainResult


@click.command(cls=Command, context_settings=CONTEXT)
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-train")
@job_options
@section(
    "Reading data",
    click.option(
        "--verify-shards", is_flag=True, help="Compare the checksums of all shards before training."
    ),
)
@failure_options
@section(
    "Output",
    click.option(
        "-o", "--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/RECIPE]"
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Continue the run in --out from its last checkpoint; start one where there is none.",
    ),
    click.option(
        "--resume-required", is_flag=True, help="Continue the run in --out, and refuse to start another."
    ),
    click.option(
        "--force", is_flag=True, help="Replace the run in --out, and the file of --profile; other files stay."
    ),
    take_over_option,
    click.option(
        "--tensorboard",
        is_flag=True,
        help="Also write TensorBoard logs, to the folder tensorboard in --out.",
    ),
)
@validation_options
@saving_options
@debugging_options
@one_line_errors
def main(
    out: Path | None,
    resume: bool,
    resume_required: bool,
    tensorboard: bool,
    verify_shards: bool,
    force: bool,
    take_over: bool,
    **options: Any,
) -> None:
    """Train a network on DATA.

    DATA is a dataset made by `alexnet-prep shard`: a folder, or an s3:// or gs:// URL; by default the one
    that $ALEXNET_DATA names, else shards. Without --gpus or --cpus, training uses all visible GPUs, or one
    CPU process where there are none. The recipe, metrics.jsonl, and the checkpoints last.pt and best.pt are
    written to --out. On SIGTERM or SIGUSR1 the run writes a checkpoint and exits with code 75; --resume
    continues it. `alexnet-show status RUN` shows the progress of a run, `alexnet-plan` what a run would do,
    and `alexnet-bench` what limits its speed.
    """
    check_outputs(force)
    from pipeline import Dataset
    from trainer.callbacks.tensorboard import require_tensorboard
    from trainer.distributed.env import launched_outside
    from trainer.distributed.launch import launch
    from trainer.distributed.stop_signals import STOPPED
    from trainer.runs.records import Validation
    from trainer.training.options import Debugging, Saving

    if tensorboard:
        require_tensorboard()
    job, processes = new_job(
        "training",
        options,
        out=out,
        resume="must" if resume_required else "auto" if resume else "no",
        force=force,
        take_over=take_over,
        validation=Validation(not options["no_val"], options["val_every_steps"], options["patience"]),
        saving=Saving(
            options["checkpoint_steps"], options["checkpoint_minutes"] or None, options["keep_checkpoints"]
        ),
        debugging=Debugging(
            options["synthetic"], options["overfit_batch"], options["max_steps"], options["profile"]
        ),
        hang_seconds=options["hang_timeout"],
    )
    if verify_shards and not launched_outside():
        _verify(Dataset.open(job.data))
    writes_files()
    verify = verify_shards and launched_outside()
    with keeping(lambda: _kept(job.out)):
        result = launch(processes, _train, job, tensorboard, verify, max_restarts=options["max_restarts"])
    if result is not None and result.ending == "stopped":
        sys.exit(STOPPED)


def _kept(out: Path) -> str:
    """Describe how a run that Ctrl-C has ended can be continued."""
    from trainer.runs.checkpoint import LAST

    return f"--out {out} --resume continues from the last checkpoint" if (out / LAST).exists() else ""


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
