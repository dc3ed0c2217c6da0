"""Print the plan of `alexnet-train --dry-run`."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trainer.training.dry_run import Plan


def print_plan(plan: "Plan") -> None:
    """Print the resolved recipe, then steps, processes, network and data, one line each."""
    click.echo(plan.recipe)
    for name, text in {
        "steps": f"{plan.steps:,}, {plan.steps_per_epoch:,} per epoch",
        "processes": f"{plan.processes}, {plan.batch_size:,} images per step in each",
        "network": f"{plan.parameters:,} parameters, {plan.precision}",
        "data": ", ".join(f"{split} {count:,}" for split, count in plan.samples.items())
        + " images; the first batches can be read",
    }.items():
        click.echo(f"{click.style(f'{name:<10}', bold=True)} {text}")
