"""`alexnet-show`: draw figures of a trained network, and write the report of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.common.console import check_folder, one_line_errors, progress_bar, require_dali

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline import Dataset
    from trainer import LoadedModel
    from trainer.inference.examples import NamedImage

_Command = TypeVar("_Command", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False)
_RUN = click.argument("run", type=_PATH, metavar="RUN_OR_CHECKPOINT")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alexnet-toolkit", prog_name="alexnet-show")
def main() -> None:
    """Draw figures of a trained network, or write the report of a run.

    Figures are PNG or SVG, by the file's suffix. For a run's folder, the best checkpoint is used, and the
    dataset that its run.json names.
    """


def _out(name: str) -> Callable[[_Command], _Command]:
    return click.option(
        "-o",
        "--out",
        type=_FILE,
        default=Path(f"{name}.png"),
        show_default=True,
        help="PNG or SVG file to write.",
    )


def _data(command: _Command) -> _Command:
    return click.option("--data", help="Dataset to use.  [default: the one named in run.json]")(command)


def _split(command: _Command) -> _Command:
    return click.option("--split", default="val", show_default=True, help="Split to take images from.")(
        command
    )


def _seed(command: _Command) -> _Command:
    return click.option(
        "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the choice of images."
    )(command)


def _batch_size(command: _Command) -> _Command:
    return click.option(
        "--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Images per batch."
    )(command)


@main.command()
@_RUN
@_out("kernels")
@one_line_errors
def kernels(run: Path, out: Path) -> None:
    """Draw the first layer's kernels (figure 3 of the paper).

    The kernels of the first tower are above those of the second, as in the paper.
    """
    _check(out)
    from trainer import draw_kernels, load_model

    trained = load_model(run)
    _save(draw_kernels(trained.classifier, trained.name), out)


@main.command()
@_RUN
@_out("predictions")
@click.option("--count", default=8, show_default=True, type=click.IntRange(1, 100), help="Number of images.")
@click.option("--only-errors", is_flag=True, help="Show only images whose top-1 prediction is wrong.")
@_seed
@_split
@_data
@one_line_errors
def predictions(
    run: Path, out: Path, count: int, only_errors: bool, seed: int, split: str, data: str | None
) -> None:
    """Draw images with their top-5 predictions (figure 4).

    Bars show probabilities, the label's in orange. Images are chosen from --split at random by --seed. The
    top-1 prediction of each image is printed too.
    """
    _check(out)
    from pipeline import RunError
    from trainer import draw_predictions, some_predictions
    from trainer.runs.load_model import class_names, dataset_name, refuse_other_classes

    trained, dataset = _open(run, data)
    refuse_other_classes(trained, dataset)
    found = some_predictions(trained.classifier, dataset, split, count, seed, only_errors)
    if not found:
        raise RunError(
            f"{dataset.url}: the network predicts every image of {split} correctly; leave --only-errors out"
        )
    names = class_names(trained, dataset)
    _save(draw_predictions(found, names, f"{trained.name} on {dataset_name(dataset)}, {split}"), out)
    for one in found:
        predicted = names[one.classes[0]]
        click.echo(f"{one.image.name} ({names[one.image.label]}): {predicted} {one.probabilities[0]:.1%}")


@main.command()
@_RUN
@click.argument("images", nargs=-1, metavar="[KEY_OR_FILE]...")
@_out("neighbors")
@click.option(
    "--count",
    default=6,
    show_default=True,
    type=click.IntRange(1, 20),
    help="Number of neighbors of each image.",
)
@click.option(
    "--queries",
    default=5,
    show_default=True,
    type=click.IntRange(1, 50),
    help="Number of images to choose where none are given.",
)
@click.option("--among", default="train", show_default=True, help="Split to search for neighbors.")
@_seed
@_split
@_batch_size
@_data
@one_line_errors
def neighbors(
    run: Path,
    images: tuple[str, ...],
    out: Path,
    count: int,
    queries: int,
    among: str,
    seed: int,
    split: str,
    batch_size: int,
    data: str | None,
) -> None:
    """Draw the nearest neighbors of images (figure 4).

    Neighbors are searched among all images of --among, by Euclidean distance between the features of the
    last hidden layer. Images are given as keys of --split or as files; without any, some are chosen from
    --split.
    """
    _check(out)
    require_dali()
    from trainer import draw_neighbors, find_neighbors
    from trainer.inference.examples import named_images, some_images
    from trainer.runs.load_model import class_names, dataset_name, refuse_other_classes

    trained, dataset = _open(run, data)
    refuse_other_classes(trained, dataset)
    dataset.shards(among)
    if images:
        wanted = named_images(images, trained.spec, dataset, split)
    else:
        wanted = some_images(dataset, split, trained.spec, queries, seed)
    with progress_bar("searching", "images") as show:
        found = find_neighbors(trained.classifier, wanted, dataset, among, count, batch_size, show)
    title = f"{trained.name} on {dataset_name(dataset)}, among {dataset.samples(among):,} of {among}"
    _save(draw_neighbors(found, class_names(trained, dataset), title), out)
    for one in found:
        near = (f"{p.name} {d:.4g}" for p, d in zip(one.found, one.distances, strict=True))
        click.echo(f"{one.query.name}: {', '.join(near)}")


@main.command()
@click.argument("runs", nargs=-1, required=True, type=_PATH, metavar="RUN...")
@_out("curves")
@one_line_errors
def curves(runs: tuple[Path, ...], out: Path) -> None:
    """Draw loss, accuracy and learning rate of runs.

    Several runs share the axes. Lines are dashed for training and solid for validation.
    """
    _check(out)
    from trainer import draw_curves
    from trainer.figures.curves import read_courses

    _save(draw_curves(read_courses(runs)), out)


@main.command()
@_RUN
@_out("confusion")
@_split
@_batch_size
@_data
@one_line_errors
def confusion(run: Path, out: Path, split: str, batch_size: int, data: str | None) -> None:
    """Draw the confusion matrix of a split.

    The most confused pairs are printed too. Up to 40 classes are shown by name; of more, the figure shows
    blocks of adjacent classes and the most confused pairs.
    """
    _check(out)
    require_dali()
    from trainer import draw_confusion, evaluate_checkpoints
    from trainer.figures.confusion import most_confused
    from trainer.inference.features import this_machine
    from trainer.runs.load_model import class_names, dataset_name

    trained, dataset = _open(run, data)
    with progress_bar("evaluating", "images") as show:
        found = evaluate_checkpoints(
            this_machine(), [trained.checkpoint], dataset.url, split, "center", batch_size, progress=show
        )
    names = class_names(trained, dataset)
    _save(draw_confusion(found.confusion, names, f"{trained.name} on {dataset_name(dataset)}, {split}"), out)
    for pair in most_confused(found.confusion, 5):
        click.echo(f"{names[pair.label]} predicted as {names[pair.predicted]}: {pair.count} of {pair.of}")


@main.command()
@_RUN
@click.argument("image", metavar="KEY_OR_FILE")
@_out("maps")
@click.option(
    "--layer", "layers", multiple=True, help="Name of a layer; repeatable.  [default: all convolutions]"
)
@click.option(
    "--channels",
    default=32,
    show_default=True,
    type=click.IntRange(1, 512),
    help="Largest number of maps per layer.",
)
@_split
@_data
@one_line_errors
def maps(
    run: Path, image: str, out: Path, layers: tuple[str, ...], channels: int, split: str, data: str | None
) -> None:
    """Draw the feature maps of layers for an image.

    The image is a key of --split, or a file, which is scaled as `alexnet-prep shard` does. All maps of a
    layer share one color scale.
    """
    _check(out)
    from trainer import draw_maps

    trained, _, found = _open_image(run, image, split, data)
    title = f"{trained.name}, {found.name}"
    _save(draw_maps(trained.classifier, found.crop, layers, title, channels), out)


@main.command()
@_RUN
@click.argument("image", metavar="KEY_OR_FILE")
@_out("saliency")
@click.option("--class", "class_", help="Id or name of the class.  [default: the top-1 prediction]")
@_split
@_data
@one_line_errors
def saliency(run: Path, image: str, out: Path, class_: str | None, split: str, data: str | None) -> None:
    """Draw the gradient of a class's logit by pixel.

    The image is a key of --split or a file. The gradient's magnitude is drawn beside the image and over it.
    """
    _check(out)
    from trainer import draw_saliency
    from trainer.figures.filters import saliency as strength
    from trainer.inference.examples import predict
    from trainer.runs.load_model import class_names, label_of

    trained, dataset, found = _open_image(run, image, split, data)
    if class_ is None:
        label = predict(trained.classifier, [found])[0].classes[0]
    else:
        label = label_of(trained, dataset, class_)
    name = class_names(trained, dataset)[label]
    title = f"{trained.name}, {found.name}"
    gradient = strength(trained.classifier, found.crop, label)
    _save(draw_saliency(gradient, found.crop, title, name), out)


@main.command()
@click.argument("run", type=_PATH)
@click.option("-o", "--out", type=_FILE, help="HTML file to write.  [default: RUN/report.html]")
@click.option(
    "--skip", multiple=True, metavar="PART", help="Part to leave out, such as neighbors; repeatable."
)
@_seed
@_data
@one_line_errors
def report(run: Path, out: Path | None, skip: tuple[str, ...], seed: int, data: str | None) -> None:
    """Write a report about a run as one HTML page.

    The page shows summary, curves, throughput, kernels, predictions, neighbors, confusion, data statistics
    and recipe. Parts that cannot be made, for example because the dataset is missing, are listed with the
    reason.
    """
    check_folder(out or (run / "report.html" if run.is_dir() else None))
    from cli.common.facts import in_bytes
    from trainer.report.page import write_report

    with progress_bar("reading", "images") as show:
        made = write_report(
            run, out or run / "report.html", data, skip=skip, seed=seed, progress=lambda _, *done: show(*done)
        )
    for part, reason in made.left_out.items():
        click.echo(f"note: without {part}: {reason}", err=True)
    click.echo(f"{made.file} ({in_bytes(made.file.stat().st_size)})")


def _check(out: Path) -> None:
    """Check before anything is drawn that `out` can be written and ends in .png or .svg."""
    check_folder(out)
    from trainer.figures.style import check_figure_file

    check_figure_file(out)


def _save(figure: "Figure", out: Path) -> None:
    from trainer.figures.style import save_figure

    save_figure(figure, out)
    click.echo(str(out))


def _open(run: Path, data: str | None) -> "tuple[LoadedModel, Dataset]":
    from trainer import load_model
    from trainer.runs.load_model import dataset_of

    trained = load_model(run)
    return trained, dataset_of(trained, data)


def _open_image(
    run: Path, image: str, split: str, data: str | None
) -> "tuple[LoadedModel, Dataset | None, NamedImage]":
    """Load a network, its dataset (None where not needed and not found), and an image by file or key."""
    from trainer import load_model
    from trainer.inference.examples import named_images
    from trainer.runs.load_model import dataset_if_any, dataset_of

    trained = load_model(run)
    needed = data is not None or not Path(image).is_file()
    dataset = dataset_of(trained, data) if needed else dataset_if_any(trained)
    return trained, dataset, named_images([image], trained.spec, dataset, split)[0]
