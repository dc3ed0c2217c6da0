"""`alexnet-show`: draw figures of a trained network, and show or report on a run."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.common.commands import CONTEXT, Group, option_group, section
from cli.common.console import echo, one_line_errors, progress_bar
from cli.common.options import classes_by_option, precision_option, weights_option
from cli.common.outputs import OutputFile, check_outputs, force_option
from cli.report import report
from cli.status import status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline import Dataset
    from trainer import LoadedModel
    from trainer.inference.examples import NamedImage
    from trainer.precision import PrecisionName
    from trainer.runs.class_match import ClassesBy
    from trainer.runs.state_dict import WeightsChoice

    Option = Callable[..., Any]
    Drawn = tuple[Figure, list[str]]
    """A figure, and lines to print."""

_PATH = click.Path(path_type=Path)
_RUN = option_group(click.argument("run", type=_PATH, metavar="RUN_OR_CHECKPOINT"), weights_option)
_IMAGE = click.argument("image", metavar="KEY_OR_FILE")


def _images(*names: str, **settings: Any) -> Callable[..., Any]:
    """Return an option that stands under the heading "Images"."""
    return section("Images", click.option(*names, **settings))


_DATA = _images("--data", type=click.Path(), help="Dataset to use.  [default: the one named in run.json]")
_SPLIT = _images("--split", help="Split to take images from.  [default: val, or the only one]")


def _number(name: str, default: int, help_: str, least: int = 1, most: int | None = None) -> "Option":
    """Return an option for a number, with its bounds."""
    return _images(name, default=default, show_default=True, type=click.IntRange(least, most), help=help_)


_SEED = _number("--seed", 0, "Seed of the choice of images.", least=0)
_BATCH_SIZE = _number("--batch-size", 64, "Images per batch.")


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-show")
def main() -> None:
    """Draw figures of a trained network, show the state of a run, or write its report.

    Figures are PNG or SVG, by the file's suffix. For a run's folder, the best checkpoint is used, and the
    dataset that its run.json names.
    """


main.add_command(report)
main.add_command(status)


def _figure(command: "Callable[..., Drawn]") -> Callable[..., Any]:
    """Register a command that returns a figure, which is written to --out, and lines to print."""

    @wraps(command)
    def write(out: Path, force: bool, **arguments: Any) -> None:
        check_outputs(force)
        from pipeline.images.figure import check_figure_file, save_figure

        check_figure_file(out)
        figure, lines = command(**arguments)
        if "precision" in arguments:
            echo(f"computed in {arguments['precision']}", err=True)
        save_figure(figure, out)
        for line in (str(out), *lines):
            echo(line)

    option = section(
        "Output",
        click.option(
            "-o",
            "--out",
            type=OutputFile(),
            default=Path(f"{command.__name__}.png"),
            show_default=True,
            help="PNG or SVG file to write.",
        ),
    )
    return main.command()(option(force_option(one_line_errors(write))))


@_figure
@_RUN
def kernels(run: Path, weights: "WeightsChoice | None") -> "Drawn":
    """Draw the first layer's kernels (figure 3 of the paper).

    The kernels of the first tower are above those of the second, as in the paper.
    """
    from trainer import draw_kernels

    trained = _load(run, weights)
    return draw_kernels(trained.classifier, trained.name), []


@_figure
@_RUN
@_number("--count", 8, "Number of images.", most=100)
@_images("--only-errors", is_flag=True, help="Show only images whose top-1 prediction is wrong.")
@_SEED
@_SPLIT
@classes_by_option
@precision_option
@_DATA
def predictions(
    run: Path,
    weights: "WeightsChoice | None",
    count: int,
    only_errors: bool,
    seed: int,
    split: str | None,
    classes_by: "ClassesBy",
    precision: "PrecisionName",
    data: str | None,
) -> "Drawn":
    """Draw images with their top-5 predictions (figure 4).

    Bars show probabilities, the label's in orange. Images are chosen from --split at random by --seed. The
    top-1 prediction of each image is printed too.
    """
    from pipeline import RunError
    from trainer import draw_predictions, some_predictions
    from trainer.runs.load_model import over_dataset

    trained, dataset, names, title = _open(run, weights, data)
    trained, split = over_dataset(trained, dataset, classes_by), dataset.evaluation_split(split)
    found = some_predictions(trained.classifier, dataset, split, count, seed, only_errors, precision)
    if not found:
        raise RunError(f"{dataset.url}: all images of {split} are predicted right; leave --only-errors out")
    return draw_predictions(found, names, f"{title}, {split}"), [
        f"{one.image.name} ({names[one.image.label]}): {names[one.classes[0]]} {one.probabilities[0]:.1%}"
        for one in found
    ]


@_figure
@_RUN
@click.argument("images", nargs=-1, metavar="[KEY_OR_FILE]...")
@_number("--count", 6, "Number of neighbors of each image.", most=20)
@_number("--queries", 5, "Number of images to choose where none are given.", most=50)
@_images("--among", default="train", show_default=True, help="Split to search for neighbors.")
@_SEED
@_SPLIT
@_BATCH_SIZE
@precision_option
@_DATA
def neighbors(
    run: Path,
    weights: "WeightsChoice | None",
    images: tuple[str, ...],
    count: int,
    queries: int,
    among: str,
    seed: int,
    split: str | None,
    batch_size: int,
    precision: "PrecisionName",
    data: str | None,
) -> "Drawn":
    """Draw the nearest neighbors of images (figure 4).

    Neighbors are searched among all images of --among, by Euclidean distance between the features of the
    last hidden layer. Images are given as keys of --split or as files; without any, some are chosen from
    --split.
    """
    from trainer import draw_neighbors, find_neighbors
    from trainer.inference.examples import named_images, some_images

    trained, dataset, names, title = _open(run, weights, data)
    dataset.shards(among)
    split = dataset.evaluation_split(split)
    if images:
        wanted = named_images(images, trained.spec, dataset, split)
    else:
        wanted = some_images(dataset, split, trained.spec, queries, seed)
    with progress_bar("searching", "images") as show:
        found = find_neighbors(trained.classifier, wanted, dataset, among, count, batch_size, precision, show)
    lines = []
    for one in found:
        near = (f"{image.name} {d:.4g}" for image, d in zip(one.found, one.distances, strict=True))
        lines.append(f"{one.query.name}: {', '.join(near)}")
    title += f", among {len(dataset.samples(among)):,} of {among}"
    return draw_neighbors(found, names, title), lines


@_figure
@click.argument("runs", nargs=-1, required=True, type=_PATH, metavar="RUN...")
def curves(runs: tuple[Path, ...]) -> "Drawn":
    """Draw loss, accuracy and learning rate of runs.

    Several runs share the axes. Lines are dashed for training and solid for validation.
    """
    from trainer import draw_curves
    from trainer.figures.curves import read_courses

    return draw_curves(read_courses(runs)), []


@_figure
@_RUN
@_SPLIT
@classes_by_option
@_BATCH_SIZE
@precision_option
@_DATA
def confusion(
    run: Path,
    weights: "WeightsChoice | None",
    split: str | None,
    classes_by: "ClassesBy",
    batch_size: int,
    precision: "PrecisionName",
    data: str | None,
) -> "Drawn":
    """Draw the confusion matrix of a split.

    The most confused pairs are printed too. Up to 40 classes are shown by name; of more, the figure shows
    blocks of adjacent classes and the most confused pairs.
    """
    from trainer import draw_confusion, evaluate_checkpoints
    from trainer.evaluation.results import over_shared
    from trainer.figures.confusion import most_confused
    from trainer.inference.features import this_machine

    trained, dataset, _, title = _open(run, weights, data)
    with progress_bar("evaluating", "images") as show:
        found = evaluate_checkpoints(
            this_machine(),
            [trained.checkpoint],
            dataset.url,
            split,
            "center",
            batch_size,
            weights=weights,
            precision=precision,
            classes_by=classes_by,
            on_progress=show,
        )
    if over := over_shared(found):
        echo(f"note: {over}", err=True)
    matrix, names = found.confusion, [info.name for info in found.per_class]
    return draw_confusion(matrix, names, f"{title}, {found.split}"), [
        f"{names[pair.label]} predicted as {names[pair.predicted]}: {pair.count} of {pair.of}"
        for pair in most_confused(matrix, 5)
    ]


@_figure
@_RUN
@_IMAGE
@_images("--layer", "layers", multiple=True, help="Name of a layer; repeatable.  [default: all convolutions]")
@_number("--channels", 32, "Largest number of maps per layer.", most=512)
@_SPLIT
@precision_option
@_DATA
def maps(
    run: Path,
    weights: "WeightsChoice | None",
    image: str,
    layers: tuple[str, ...],
    channels: int,
    split: str | None,
    precision: "PrecisionName",
    data: str | None,
) -> "Drawn":
    """Draw the feature maps of layers for an image.

    The image is a key of --split, or a file, which is scaled as `alexnet-prep shard` does. All maps of a
    layer share one color scale.
    """
    from trainer import draw_maps

    trained, _, found = _open_image(run, weights, image, split, data)
    title = f"{trained.name}, {found.name}"
    return draw_maps(trained.classifier, found.crop, layers, title, channels, precision), []


@_figure
@_RUN
@_IMAGE
@_images("--class", "class_", help="Id or name of the class.  [default: the top-1 prediction]")
@_SPLIT
@precision_option
@_DATA
def saliency(
    run: Path,
    weights: "WeightsChoice | None",
    image: str,
    class_: str | None,
    split: str | None,
    precision: "PrecisionName",
    data: str | None,
) -> "Drawn":
    """Draw the gradient of a class's logit by pixel.

    The image is a key of --split or a file. The gradient's magnitude is drawn beside the image and over it.
    """
    from trainer import draw_saliency
    from trainer.figures.filters import saliency as strength
    from trainer.inference.examples import predict
    from trainer.runs.load_model import class_names, label_of

    trained, dataset, found = _open_image(run, weights, image, split, data)
    if class_ is None:
        label = predict(trained.classifier, [found], precision)[0].classes[0]
    else:
        label = label_of(trained, dataset, class_)
    name = class_names(trained, dataset)[label]
    gradient = strength(trained.classifier, found.crop, label, precision)
    return draw_saliency(gradient, found.crop, f"{trained.name}, {found.name}", name), []


def _load(run: Path, weights: "WeightsChoice | None") -> "LoadedModel":
    """Load a network; print which of its weights were taken where there are several."""
    from trainer import load_model

    trained = load_model(run, weights)
    for note in trained.notes:
        echo(f"note: {note}", err=True)
    return trained


def _open(
    run: Path, weights: "WeightsChoice | None", data: str | None
) -> "tuple[LoadedModel, Dataset, list[str], str]":
    """Load a network and a dataset; return both, the names of the dataset's classes, and a title."""
    from trainer.runs.load_model import dataset_name, dataset_of

    trained = _load(run, weights)
    dataset = dataset_of(trained, data)
    names = [info.name for info in dataset.manifest.classes]
    return trained, dataset, names, f"{trained.name} on {dataset_name(dataset)}"


def _open_image(
    run: Path, weights: "WeightsChoice | None", image: str, split: str | None, data: str | None
) -> "tuple[LoadedModel, Dataset | None, NamedImage]":
    """Load a network, its dataset (None where not needed and not found), and an image by file or key."""
    from trainer.inference.examples import named_images
    from trainer.runs.load_model import dataset_if_any, dataset_of

    trained = _load(run, weights)
    needed = data is not None or not Path(image).is_file()
    dataset = dataset_of(trained, data) if needed else dataset_if_any(trained)
    split = dataset.evaluation_split(split) if dataset and needed else "val"
    return trained, dataset, named_images([image], trained.spec, dataset, split)[0]
