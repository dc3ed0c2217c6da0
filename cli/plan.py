"""Print the plan of `alexnet-train --dry-run`."""

from typing import TYPE_CHECKING

from cli.common.console import echo, echo_lines

if TYPE_CHECKING:
    from trainer.training.dry_run import Plan


def print_plan(plan: "Plan") -> None:
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
