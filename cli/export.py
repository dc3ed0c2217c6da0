"""`alexnet-export`: write a trained network in a format that other programs read."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.common.commands import CONTEXT, Command
from cli.common.console import echo, one_line_errors
from cli.common.options import weights_option
from cli.common.outputs import OutputFile, check_outputs, force_option

if TYPE_CHECKING:
    from trainer.runs.state_dict import WeightsChoice


@click.command(cls=Command, context_settings=CONTEXT)
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-export")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="RUN_OR_CHECKPOINT")
@click.argument("out", type=OutputFile())
@force_option
@weights_option
@one_line_errors
def main(checkpoint: Path, out: Path, force: bool, weights: "WeightsChoice | None") -> None:
    """Write a trained network to OUT, in the format of OUT's suffix.

    .safetensors holds weights and metadata, and can be used wherever a checkpoint can. .onnx maps pixels
    0..255 to logits and probabilities, for any batch size; its outputs are compared with the network's before
    it is written. .pth is a state dict with the keys of torchvision's alexnet, for alexnet_owt only. Each
    format keeps preprocessing and classes, .pth in a .preprocessing.json file beside it.
    """
    beside = [out.with_suffix(".preprocessing.json")] if out.suffix == ".pth" else []
    check_outputs(force, *beside)
    from trainer.export import export
    from trainer.runs.load_model import load_model

    trained = load_model(checkpoint, weights)
    notes = [*trained.notes, *export(trained.classifier, out)]
    echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    for note in notes:
        echo(f"note: {note}", err=True)
