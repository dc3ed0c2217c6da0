"""`alexnet-eval`: measure the accuracy of trained networks on a dataset."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.common.commands import CONTEXT, Command, section
from cli.common.console import complain, echo, echo_lines, one_line_errors, progress_bar
from cli.common.options import (
    RUNS,
    classes_by_option,
    data_options,
    loader_options_of,
    precision_option,
    weights_option,
)
from cli.common.outputs import OutputFile, check_outputs, force_option
from cli.common.results import print_classes, print_results
from cli.common.streams import safe_streams
from pipeline.progress import no_progress

if TYPE_CHECKING:
    from pipeline import Dataset
    from trainer import DistEnv, Evaluation, ExternalWeights
    from trainer.precision import PrecisionName
    from trainer.runs.class_match import ClassesBy
    from trainer.runs.state_dict import WeightsChoice

_input_option = partial(click.option, type=click.Path(path_type=Path, dir_okay=False))
_output_option = partial(click.option, type=OutputFile())


@click.command(cls=Command, context_settings=CONTEXT)
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-eval")
@click.argument("checkpoints", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN_OR_CHECKPOINT]...")
@section(
    "Network",
    click.option(
        "--ensemble-weights",
        metavar="W,W,…",
        help="Weight of each checkpoint in the ensemble, such as 2,1,1.  [default: all equal]",
    ),
    click.option("--arch", help="Architecture of checkpoints from other programs, such as alexnet_owt."),
    click.option(
        "--preprocessing",
        metavar="NAME|FILE.toml",
        help="Preprocessing of checkpoints from other programs: torchvision, or a TOML file with mean, std.",
    ),
    weights_option,
    classes_by_option,
    precision_option,
)
@section(
    "What is measured",
    click.option(
        "--data", type=click.Path(), help="Dataset to evaluate on.  [default: the one named in run.json]"
    ),
    click.option(
        "--views",
        type=click.Choice(["center", "ten-crop", "full-resize"]),
        default="center",
        show_default=True,
        help="Crops of each image: the center crop, ten crops, or the whole image resized to a square.",
    ),
    click.option("--split", help="Split to evaluate.  [default: val, or the only one]"),
    _input_option(
        "--real-labels", help="Also score by the ImageNet-ReaL labels in this file, their real.json."
    ),
    _input_option(
        "--labels",
        "labels_file",
        help="Also score by the labels in this file: CSV or JSON with a key and a label for each image.",
    ),
    click.option(
        "--devkit",
        type=click.Path(path_type=Path),
        help="Development kit of ILSVRC 2012, which numbers the classes: archive, folder or meta.mat.",
    ),
)
@section(
    "Output",
    click.option("--per-class", is_flag=True, help="Print a table of the worst and the best classes."),
    click.option(
        "--table",
        is_flag=True,
        help="Print a Markdown table of the results; on ImageNet, with published results beside them.",
    ),
    _output_option("--json", "json_file", help="Save the result as JSON."),
    _output_option(
        "--predictions",
        "predictions_file",
        help="Save the five most probable classes of each image as .csv or .parquet.",
    ),
    _output_option("--confusion", "confusion_file", help="Save the confusion matrix as CSV."),
    _output_option(
        "--submission",
        "submission_file",
        help="Save predictions in the format of ImageNet challenge submissions; needs --devkit.",
    ),
    _output_option(
        "--kernels",
        "kernels_file",
        help="Save the first-layer kernels of the first checkpoint as a PNG image.",
    ),
    force_option,
)
@section(
    "Processes",
    click.option(
        "--batch-size",
        default=64,
        show_default=True,
        type=click.IntRange(1),
        help="Images per batch in each process.",
    ),
    click.option("--gpus", type=int, help="Number of GPUs to evaluate on.  [default: all visible GPUs]"),
    click.option("--cpus", type=int, help="Number of CPU processes to evaluate in, instead of GPUs."),
)
@data_options
@one_line_errors
def main(
    checkpoints: tuple[Path, ...],
    data: str | None,
    views: str,
    ensemble_weights: str | None,
    split: str | None,
    classes_by: "ClassesBy",
    real_labels: Path | None,
    labels_file: Path | None,
    arch: str | None,
    preprocessing: str | None,
    weights: "WeightsChoice | None",
    per_class: bool,
    table: bool,
    json_file: Path | None,
    predictions_file: Path | None,
    confusion_file: Path | None,
    submission_file: Path | None,
    devkit: Path | None,
    kernels_file: Path | None,
    batch_size: int,
    precision: "PrecisionName",
    gpus: int | None,
    cpus: int | None,
    force: bool,
    **loader_options: Any,
) -> None:
    """Measure the accuracy of trained networks on a dataset.

    RUN_OR_CHECKPOINT is a checkpoint file or a run's folder, of which the best checkpoint is evaluated; by
    default the run below runs whose checkpoint is the newest. Several checkpoints are evaluated as an
    ensemble. The dataset is the one that the run was trained on, or that of --data: a folder, or an s3:// or
    gs:// URL. Probabilities, not logits, are averaged over crops and networks. Where the dataset has other
    classes than the networks, the shared ones are evaluated.
    """
    check_outputs(force)
    # Without it, waiting torch threads spin on the cores that decode: on two cores that costs 5 to 15 % more
    # CPU time per image, and half the speed where other programs run too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pipeline import Dataset, UsageError
    from pipeline.sources.labelers.devkit import read_ids
    from trainer import markdown, read_labels, read_real_labels, score_labels, write_predictions
    from trainer.distributed.env import adopt_slurm, choose_processes, first_of_all, launched_outside
    from trainer.distributed.launch import launch
    from trainer.evaluation.predictions import check_suffix
    from trainer.evaluation.results import write_confusion, write_json
    from trainer.evaluation.submission import check_submission, write_submission
    from trainer.precision import check_precision
    from trainer.runs.external_weights import describe
    from trainer.runs.load_model import normalized

    if (submission_file is None) != (devkit is None):
        raise UsageError("--submission and --devkit go together: the development kit numbers the classes")
    if predictions_file is not None:
        check_suffix(predictions_file)
    external = describe(arch, preprocessing)
    adopt_slurm()
    processes = choose_processes(gpus, cpus)
    check_precision(precision, processes.kind)
    checkpoints, data = _chosen(checkpoints, data, say=first_of_all())
    shares = None if ensemble_weights is None else normalized(_numbers(ensemble_weights), len(checkpoints))
    dataset = Dataset.open(data)
    split = dataset.evaluation_split(split)
    label_sets = [
        read(file, dataset.samples(split).keys(), dataset.classes)
        for read, file in ((read_real_labels, real_labels), (read_labels, labels_file))
        if file is not None
    ]
    ids = {} if devkit is None else read_ids(devkit)
    if submission_file is not None:
        check_submission(dataset.samples(split).keys(), dataset.classes, ids)
    if not launched_outside():
        echo(f"evaluating on {processes.reason}", err=True)
    evaluated = partial(
        _evaluate,
        paths=checkpoints,
        root=data,
        split=split,
        views=views,
        batch_size=batch_size,
        ensemble_weights=shares,
        external=external,
        weights=weights,
        loader_options=loader_options_of(loader_options),
        precision=precision,
        predict=bool(label_sets or predictions_file or submission_file),
        classes_by=classes_by,
        every_image=submission_file is not None,
    )
    result = launch(processes, evaluated)
    if result is None or not first_of_all():
        return
    for line in result.notes:
        echo(f"note: {line}", err=True)
    predictions = result.predictions
    scores = [] if predictions is None else [score_labels(predictions, labels) for labels in label_sets]
    outputs: list[tuple[Path | None, Callable[[Path], None]]] = [
        (json_file, lambda file: write_json(file, result, scores)),
        (confusion_file, lambda file: write_confusion(file, result)),
        (
            kernels_file,
            lambda file: _draw_kernels(checkpoints[0], file, dataset, external, weights, classes_by),
        ),
    ]
    if predictions is not None:
        outputs += [
            (predictions_file, lambda file: write_predictions(file, predictions, dataset.manifest.classes)),
            (submission_file, lambda file: write_submission(file, predictions, dataset.classes, ids)),
        ]
    exit_code = _write(outputs)
    print_results(result, scores, label_sets)
    if per_class:
        print_classes(result)
    if table:
        echo_lines(f"\n{markdown(result, scores)}")
    if kernels_file is not None:
        echo(f"kernels: {kernels_file}")
    if exit_code:
        raise SystemExit(exit_code)


def _chosen(checkpoints: tuple[Path, ...], data: str | None, *, say: bool) -> tuple[tuple[Path, ...], str]:
    """Return the checkpoints and the dataset: those given, else the newest run, and its dataset."""
    from trainer import newest_run
    from trainer.runs.load_model import dataset_named

    lines = []
    if not checkpoints:
        checkpoints = (newest_run(RUNS),)
        lines.append(f"run: {checkpoints[0]} (the newest below {RUNS})")
    if data is None:
        data = dataset_named(checkpoints)
        lines.append(f"dataset: {data} (the one that it was trained on)")
    if lines and say:
        echo("; ".join(lines), err=True)
    return checkpoints, data


def _numbers(text: str) -> list[float]:
    from pipeline import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--ensemble-weights {text}: give one number per checkpoint, separated by commas, such as 2,1,1"
        ) from error


def _evaluate(env: "DistEnv", **arguments: Any) -> "Evaluation":
    """Entry point of each process: evaluate; the first process shows a progress bar."""
    from trainer import evaluate_checkpoints

    bar = progress_bar("evaluating", "images") if env.is_first else nullcontext(no_progress)
    with safe_streams(), bar as show:
        return evaluate_checkpoints(env, on_progress=show, on_log=_log, **arguments)


def _log(line: str) -> None:
    echo(f"note: {line}", err=True)


def _write(outputs: list[tuple[Path | None, Callable[[Path], None]]]) -> int:
    """Write each requested file; where one fails, report it and write the others. Return the exit code."""
    from pipeline.errors import RunError

    exit_code = 0
    for file, write in outputs:
        if file is not None:
            try:
                write(file)
            except RunError as error:
                complain(str(error))
                exit_code = error.exit_code
    return exit_code


def _draw_kernels(
    run_or_checkpoint: Path,
    file: Path,
    dataset: "Dataset",
    external: "ExternalWeights | None",
    weights: "WeightsChoice | None",
    classes_by: "ClassesBy",
) -> None:
    from pipeline.images.figure import figure_bytes
    from pipeline.storage.atomic import write_bytes
    from trainer import draw_kernels
    from trainer.runs import checkpoint
    from trainer.runs.checkpoint_file import read_file
    from trainer.runs.load_model import classifier_for

    path = checkpoint.find(run_or_checkpoint)
    classifier, *_ = classifier_for(dataset, read_file(path), path, external, weights, classes_by)
    write_bytes(file, figure_bytes(draw_kernels(classifier, run_or_checkpoint.stem), "png"))
