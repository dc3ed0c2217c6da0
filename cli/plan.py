"""`alexnet-plan`: print what a training would do."""

from typing import TYPE_CHECKING, Any

import click

from cli.common.commands import CONTEXT, Command
from cli.common.console import echo, echo_lines, one_line_errors
from cli.common.jobs import job_options, new_job

if TYPE_CHECKING:
    from trainer.training.dry_run import Plan


@click.command(cls=Command, context_settings=CONTEXT)
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-plan")
@job_options
@one_line_errors
def main(**options: Any) -> None:
    """Print the resolved recipe, processes and steps of a training on DATA, and read its first batches.

    DATA is a dataset made by `alexnet-prep shard`; by default the one that $ALEXNET_DATA names, else shards.
    Nothing is written.
    """
    from trainer.training.dry_run import plan

    job, processes = new_job("planning", options)
    _print(plan(job, processes))


def _print(plan: "Plan") -> None:
    """Print the resolved recipe, then steps, processes, network and data, one line each."""
    echo_lines(plan.recipe)
    for name, text in {
        "steps": f"{plan.steps:,}, {plan.steps_per_epoch:,} per epoch",
        "processes": f"{plan.processes}, {plan.batch_size:,} images per step in each",
        "network": f"{plan.parameters:,} parameters, {plan.precision}",
        "data": ", ".join(f"{split} {count:,}" for split, count in plan.samples.items())
        + " images; the first batches can be read",
    }.items():
        echo(f" {text}", bold=f"{name:<10}")
