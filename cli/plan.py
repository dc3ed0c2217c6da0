"""What `alexnet-train --dry-run` found."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trainer.training.dry_run import Plan


def print_plan(plan: "Plan") -> None:
    """Print the recipe, then steps, memory and data."""
    click.echo(plan.recipe)
    memory = plan.memory
    parts = ", ".join(
        f"{name} {_megabytes(size)}"
        for name, size in (
            ("weights", memory.weights),
            ("gradients and velocity", memory.state),
            ("activations", memory.activations),
            ("batches", memory.batches),
        )
    )
    for name, text in {
        "steps": f"{plan.steps:,}: {plan.steps_per_epoch:,} an epoch",
        "processes": f"{plan.processes}, each {plan.batch_size:,} images a step",
        "network": f"{plan.parameters:,} parameters, {plan.precision}",
        "memory": f"about {_megabytes(memory.total)} a process, and what the libraries take: {parts}",
        "data": ", ".join(f"{split} {count:,}" for split, count in plan.samples.items())
        + " images; the first batches can be read",
    }.items():
        click.echo(f"{click.style(f'{name:<10}', bold=True)} {text}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
