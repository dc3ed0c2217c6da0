"""Content of the report's sections, as plain values for the template; images are encoded files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.images.codec import encode
from pipeline.images.figure import figure_bytes
from pipeline.images.pca_plot import colors_along
from pipeline.loader.views import TrainView, color_noise
from pipeline.progress import OnProgress
from pipeline.text import number_of
from trainer.figures.confusion import MOST_NAMED, draw_confusion, most_confused
from trainer.figures.curves import Course, Panel, draw_curves, read_courses
from trainer.figures.filters import draw_kernels
from trainer.inference.examples import NamedImage, some_images, some_predictions
from trainer.inference.features import this_machine
from trainer.inference.neighbors import find_neighbors
from trainer.precision import PrecisionName
from trainer.recipe import Recipe, load_recipe
from trainer.runs.load_model import LoadedModel, class_names, dataset_name
from trainer.runs.metrics_file import best_epoch
from trainer.runs.records import MetricsRow
from trainer.runs.run_folder import RECIPE_FILE

_PREDICTIONS, _ERRORS, _QUERIES, _NEIGHBORS, _CROPS, _PAIRS = 8, 4, 5, 6, 12, 10
_BATCH_SIZE = 64
_JPEG_QUALITY = 85
_STRIP_STEPS = 9  # colors of the gradient along an eigenvector

Facts = list[tuple[str, str]]
"""Rows of (name, value)."""


@dataclass(frozen=True)
class Image:
    """An image on the page.

    Attributes:
        content: Bytes of a JPEG, PNG or SVG file.
        alt: Alternative text, for screen readers.
    """

    content: bytes
    alt: str


@dataclass(frozen=True)
class Source:
    """What the sections are made from.

    Attributes:
        run: The run's folder.
        trained: The run's network.
        facts: Content of run.json.
        opened: The run's dataset, or the reason why there is none.
        seed: Seed of the random choice of images.
        precision: Precision in which the network is computed.
        on_progress: Progress callback of the sections that read a whole split.
    """

    run: Path
    trained: LoadedModel
    facts: dict[str, Any]
    opened: Dataset | str
    seed: int
    precision: PrecisionName
    on_progress: OnProgress

    @property
    def dataset(self) -> Dataset:
        """The dataset.

        Raises:
            UsageError: there is none.
        """
        if isinstance(self.opened, str):
            raise UsageError(self.opened)
        return self.opened

    @property
    def names(self) -> list[str]:
        """Names of the dataset's classes, in label order."""
        return class_names(self.trained, self.dataset)


def summary(source: Source) -> dict[str, Any]:
    """Network, dataset, machine and versions of a run (`rows`), and its best results (`results`).

    `chosen` says whether these are of an epoch that was chosen by its validation.
    """
    spec, machine = source.trained.spec, source.facts.get("machine", {})
    parameters = sum(p.numel() for p in source.trained.classifier.model.parameters())
    versions = ("alexnet-toolkit", "torch", "numpy", "python")
    rows: Facts = [
        ("Network", f"{spec.arch}, width {spec.width:g}, {parameters:,} parameters"),
        ("Input", f"{spec.crop} × {spec.crop} crops of images with a shorter side of {spec.size} px"),
        ("Classes", f"{len(spec.classes):,}"),
        ("Recipe", str(source.facts.get("recipe", "unknown"))),
        ("Dataset", _dataset_line(source)),
        ("Checkpoint", source.trained.checkpoint.name),
        ("Computed in", f"{source.precision}, for all predictions, neighbors and the confusion matrix"),
        ("Machine", _machine_line(machine)),
        ("Versions", ", ".join(f"{name} {machine[name]}" for name in versions if name in machine)),
    ]
    try:
        (course,) = read_courses([source.run])
    except UsageError:  # metrics.jsonl is missing or damaged
        return {"rows": _known(rows), "results": [], "chosen": False}
    best = best_epoch(course.rows)
    return {"rows": _known(rows), "results": _results(course, best), "chosen": best is not None}


def _results(course: Course, best: MetricsRow | None) -> Facts:
    """Accuracy of the best epoch, or the number of epochs where there is none, and training time."""
    epochs = course.epochs
    seconds = sum(row.train_seconds for row in epochs) + sum(row.val_seconds for row in course.rows)
    time = ("training time", _duration(seconds))
    if best is None:
        return [("epochs", f"{len(epochs)}"), time]
    return [
        ("top-1 accuracy", f"{best.val_top1:.2%}"),
        ("top-5 accuracy", f"{best.val_top5:.2%}"),
        ("best epoch", f"{best.epoch} of {epochs[-1].epoch}"),
        time,
    ]


def curves(source: Source) -> dict[str, Any]:
    """Curves of loss, accuracy and learning rate (`images`), and all lines of metrics.jsonl (`rows`)."""
    (course,) = read_courses([source.run])
    first, last = course.rows[0], course.rows[-1]
    panels: dict[Panel, str] = {"loss": f"Loss over {last.epoch} epochs", "top-1": "Top-1 accuracy"}
    if last.val_top1 is not None:
        panels["loss"] += f": validation ends at {last.val_loss:.3f} nats"
        panels["top-1"] += f": validation ends at {last.val_top1:.1%}"
        panels["top-5"] = f"Top-5 accuracy: validation ends at {last.val_top5:.1%}"
    panels["lr"] = f"Learning rate: from {first.lr:.2g} to {last.lr:.2g}"
    return {"images": [_panel(course, name, alt) for name, alt in panels.items()], "rows": course.rows}


def throughput(source: Source) -> dict[str, Any]:
    """Curve of training images per second over the epochs (`image`), and where the time went (`rows`)."""
    (course,) = read_courses([source.run])
    if not course.epochs:
        raise UsageError(f"{source.run}: no epoch is finished yet")
    speeds = sorted(row.images_per_second for row in course.epochs)
    slowest, median, fastest = (f"{speeds[at]:,.0f}" for at in (0, len(speeds) // 2, -1))
    training = sum(row.train_seconds for row in course.epochs)
    validating = sum(row.val_seconds for row in course.rows)
    waited = sum(row.data_wait * row.train_seconds for row in course.epochs)
    alt = f"Training images per second in each epoch: {slowest} to {fastest}"
    rows: Facts = [
        ("Training images per second, median epoch", median),
        ("Slowest and fastest epoch", f"{slowest} and {fastest}"),
        ("Training", _duration(training)),
        ("Validation", _duration(validating) if validating else ""),
        # Some runs did not record how long they waited.
        ("Waiting for data", f"{waited / training:.1%} of the training time" if waited else ""),
        ("Batches ready when one was needed", _batches_ready(course)),
        ("On", _machine_line(source.facts.get("machine", {}))),
    ]
    return {"image": _panel(course, "throughput", alt), "rows": _known(rows)}


def _batches_ready(course: Course) -> str:
    """Return the mean over all epochs, such as "0.3 of 3"; "" where no loader told it."""
    known = [row.loader for row in course.epochs if row.loader and row.loader.ready is not None]
    batches = sum(loader.batches for loader in known)
    if not batches:
        return ""
    ready = sum((loader.ready or 0.0) * loader.batches for loader in known) / batches
    return f"{ready:.1f} of {sum(loader.under_way * loader.batches for loader in known) / batches:.0f}"


def _panel(course: Course, panel: Panel, alt: str) -> Image:
    return Image(figure_bytes(draw_curves([course], [panel], ""), "svg"), alt)


def kernels(source: Source) -> Image:
    """Figure of the first layer's kernels."""
    classifier = source.trained.classifier
    figure = draw_kernels(classifier, source.trained.name)
    count = next(classifier.model.parameters()).shape[0]
    return Image(figure_bytes(figure, "png"), f"The {count} kernels of the first layer, as small images")


def predictions(source: Source) -> list[dict[str, Any]]:
    """Top-5 predictions of validation images: random images, and random misclassified images."""
    names, classifier = source.names, source.trained.classifier
    groups = []
    for heading, count, errors in (
        ("Random images", _PREDICTIONS, False),
        ("Misclassified images", _ERRORS, True),
    ):
        cards = []
        for case in some_predictions(
            classifier, source.dataset, "val", count, source.seed, errors, source.precision
        ):
            bars = [
                (names[label], probability, label == case.image.label)
                for label, probability in zip(case.classes, case.probabilities, strict=True)
            ]
            cards.append(_card(case.image, names) | {"bars": bars})
        groups.append({"heading": heading, "cards": cards})
    return groups


def neighbors(source: Source) -> list[dict[str, Any]]:
    """Random validation images with their nearest training images."""
    trained, dataset, names = source.trained, source.dataset, source.names
    queries = some_images(dataset, "val", trained.spec, _QUERIES, source.seed)
    rows = []
    for one in find_neighbors(
        trained.classifier,
        queries,
        dataset,
        count=_NEIGHBORS,
        precision=source.precision,
        on_progress=source.on_progress,
    ):
        found = [
            _card(image, names) | {"distance": f"{distance:.4g}", "same": image.label == one.query.label}
            for image, distance in zip(one.found, one.distances, strict=True)
        ]
        rows.append(_card(one.query, names) | {"found": found})
    return rows


def _card(image: NamedImage, names: Sequence[str]) -> dict[str, Any]:
    label = names[image.label]
    jpeg = Image(encode(image.crop, _JPEG_QUALITY), f"{label}: {image.name}")
    return {"image": jpeg, "name": image.name, "label": label}


def confusion(source: Source) -> dict[str, Any]:
    """Confusion matrix, metrics and most confused pairs of the checkpoint on the validation split."""
    names, url = source.names, source.dataset.url
    from trainer.evaluation.evaluate import evaluate_checkpoints  # imports DALI
    from trainer.evaluation.results import without_images

    evaluation = evaluate_checkpoints(
        this_machine(),
        [source.trained.checkpoint],
        url,
        "val",
        "center",
        _BATCH_SIZE,
        precision=source.precision,
        on_progress=source.on_progress,
    )
    matrix, metrics = evaluation.confusion, evaluation.metrics
    right, total = int(np.trace(matrix)), int(matrix.sum())
    return {
        "image": Image(
            figure_bytes(draw_confusion(matrix, names, "val, center crop"), "svg"),
            f"Confusion matrix of {len(matrix)} classes: {right} of {total} images lie on the diagonal",
        ),
        "rows": [
            ("Top-1", _with_interval(metrics.top1, metrics.top1_interval)),
            ("Top-5", _with_interval(metrics.top5, metrics.top5_interval)),
            ("Loss", f"{metrics.loss:.4f} nats"),
            ("Calibration error", f"{metrics.ece:.2%}"),
            ("Always guessing the largest class", f"{metrics.largest_class:.1%} top-1"),
            *([("Classes", empty)] if (empty := without_images(evaluation)) else []),
        ],
        "wide": len(matrix) > MOST_NAMED,
        "pairs": [
            (names[pair.label], names[pair.predicted], pair.count, pair.of)
            for pair in most_confused(matrix, _PAIRS)
        ],
    }


def data_facts(source: Source) -> dict[str, Any]:
    """Splits and mean color (`rows`), PCA color directions, and augmented training crops of the dataset."""
    dataset, statistics = source.dataset, source.dataset.statistics
    total = max(sum(statistics.eigenvalues), 1e-12)
    directions = [
        {
            "value": f"{value:,.1f}",
            "deviation": f"{statistics.deviations[k]:.2f}",
            "share": value / total,
            "vector": [f"{x:+.3f}" for x in statistics.eigenvectors[k]],
            "strip": [
                "#{:02x}{:02x}{:02x}".format(*color) for color in colors_along(statistics, k, _STRIP_STEPS)
            ],
        }
        for k, value in enumerate(statistics.eigenvalues)
    ]
    rows: Facts = [
        (split, f"{number_of(len(dataset.samples(split)), 'image')} in {number_of(len(shards), 'shard')}")
        for split, shards in dataset.manifest.splits.items()
    ]
    mean = ", ".join(f"{name} {x:.2f}" for name, x in zip("RGB", statistics.mean, strict=True))
    rows.append(("mean", f"{mean} of 255, over {statistics.pixels:,} pixels"))
    return {"rows": rows, "directions": directions, "crops": _training_crops(source)}


def _training_crops(source: Source) -> list[Image]:
    """Crops of one training batch with the mean added back."""
    from pipeline.loader.loader import Loader
    from pipeline.preview import crops_of

    dataset, names = source.dataset, source.names
    noise = color_noise(_recipe(source.run).color_noise, dataset.statistics)
    view = TrainView(source.trained.spec.crop, dataset.statistics.mean, noise=noise)
    count = min(_CROPS, len(dataset.samples("train")))
    with Loader(dataset, "train", view, count, seed=source.seed) as loader:
        batch = next(iter(loader))
    crops = crops_of(batch.images.permute(0, 2, 3, 1).numpy(), view)
    return [
        Image(encode(crop, _JPEG_QUALITY), f"Training crop of {key}, {names[label]}")
        for crop, key, label in zip(crops, batch.keys, batch.labels.tolist(), strict=True)
    ]


def recipe(source: Source) -> dict[str, Any]:
    """All settings of the recipe, and the stages that change some of them."""
    settings = asdict(_recipe(source.run))
    stages = [
        {name: value for name, value in stage.items() if value is not None}
        for stage in settings.pop("stages")
    ]
    return {"settings": settings, "stages": stages}


def _recipe(run: Path) -> Recipe:
    return load_recipe(str(run / RECIPE_FILE))


def _known(rows: Facts) -> Facts:
    """Return the rows that have a value."""
    return [(name, text) for name, text in rows if text]


def _with_interval(share: float, interval: tuple[float, float]) -> str:
    return "{:.2%}, 95 % interval {:.2%} to {:.2%}".format(share, *interval)


def _dataset_line(source: Source) -> str:
    if isinstance(source.opened, str):
        return f"{source.facts.get('dataset', 'unknown')} (not found)"
    dataset = source.opened
    counts = ", ".join(f"{len(dataset.samples(split)):,} {split}" for split in dataset.manifest.splits)
    same = dataset.fingerprint == source.facts.get("dataset_sha256")
    return f"{dataset_name(dataset)}: {counts}" + ("" if same else "; not the one it was trained on")


def _machine_line(machine: dict[str, Any]) -> str:
    if not machine:
        return ""
    processes = str(machine.get("processes", "1"))
    return f"{machine.get('processor', 'unknown')}, {processes} process{'' if processes == '1' else 'es'}"


def _duration(seconds: float) -> str:
    """Format a duration: 45 s, 3 min 20 s, 5 h 7 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
