"""Content of the report's sections, as plain values for the template; images are encoded files."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.images.codec import encode
from pipeline.images.pca_plot import colors_along
from pipeline.loader.views import TrainView, color_noise
from trainer.figures.confusion import MOST_NAMED, draw_confusion, most_confused
from trainer.figures.curves import Panel, draw_curves, read_courses
from trainer.figures.filters import draw_kernels
from trainer.figures.style import figure_bytes
from trainer.inference.examples import NamedImage, some_images, some_predictions
from trainer.inference.features import this_machine
from trainer.inference.neighbors import find_neighbors
from trainer.recipe import Recipe, load_recipe
from trainer.runs.load_model import LoadedModel, class_names, dataset_name
from trainer.runs.records import EpochMetrics
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


def has_dali() -> bool:
    """Return whether DALI is installed, which reading whole splits needs."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def summary(trained: LoadedModel, facts: dict[str, Any], dataset: Dataset | None) -> dict[str, Any]:
    """Network, dataset, machine and versions of a run (`rows`), and its best results (`results`)."""
    spec = trained.spec
    parameters = sum(p.numel() for p in trained.classifier.model.parameters())
    machine = facts.get("machine", {})
    rows: Facts = [
        ("Network", f"{spec.arch}, width {spec.width:g}, {parameters:,} parameters"),
        ("Input", f"{spec.crop} × {spec.crop} crops of images with a shorter side of {spec.size} px"),
        ("Classes", f"{len(spec.classes):,}"),
        ("Recipe", str(facts.get("recipe", "unknown"))),
        ("Dataset", _dataset_line(facts, dataset)),
        ("Checkpoint", trained.checkpoint.name),
        ("Machine", _machine_line(machine)),
        (
            "Versions",
            ", ".join(
                f"{name} {machine[name]}"
                for name in ("alexnet-toolkit", "torch", "numpy", "dali", "python")
                if name in machine
            ),
        ),
    ]
    return {"rows": [(name, text) for name, text in rows if text], "results": _results(trained)}


def _results(trained: LoadedModel) -> Facts:
    """Accuracy of the best epoch, and training time; empty if metrics.jsonl is missing or damaged."""
    assert trained.folder is not None
    try:
        rows = read_courses([trained.folder])[0].rows
    except UsageError:
        return []
    best = max(rows, key=lambda row: row.val_top1)
    last = rows[-1]
    return [
        ("top-1 accuracy", f"{best.val_top1:.2%}"),
        ("top-5 accuracy", f"{best.val_top5:.2%}"),
        ("best epoch", f"{best.epoch} of {last.epoch}"),
        ("training time", _duration(sum(row.train_seconds + row.val_seconds for row in rows))),
    ]


def curves(run: Path) -> dict[str, Any]:
    """Curves of loss, accuracy and learning rate (`images`), and the metrics of each epoch (`rows`)."""
    courses = read_courses([run])
    rows = courses[0].rows
    panels: tuple[tuple[Panel, str], ...] = (
        ("loss", f"Loss over {len(rows)} epochs: validation ends at {rows[-1].val_loss:.3f} nats"),
        ("top-1", f"Top-1 accuracy: validation ends at {rows[-1].val_top1:.1%}"),
        ("top-5", f"Top-5 accuracy: validation ends at {rows[-1].val_top5:.1%}"),
        ("lr", f"Learning rate: from {rows[0].lr:.2g} to {rows[-1].lr:.2g}"),
    )
    return {
        "images": [Image(figure_bytes(draw_curves(courses, [name], ""), "svg"), alt) for name, alt in panels],
        "rows": rows,
    }


def throughput(run: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Curve of training images per second over the epochs (`image`), and where the time went (`rows`)."""
    courses = read_courses([run])
    rows = courses[0].rows
    speeds = sorted(row.images_per_second for row in rows)
    median = speeds[len(speeds) // 2]
    figure = draw_curves(courses, ["throughput"], "")
    alt = f"Training images per second in each epoch: {speeds[0]:,.0f} to {speeds[-1]:,.0f}"
    return {
        "image": Image(figure_bytes(figure, "svg"), alt),
        "rows": [
            ("Training images per second, median epoch", f"{median:,.0f}"),
            ("Slowest and fastest epoch", f"{speeds[0]:,.0f} and {speeds[-1]:,.0f}"),
            ("Training", _duration(sum(row.train_seconds for row in rows))),
            ("Validation", _duration(sum(row.val_seconds for row in rows))),
            *_wait(rows),
            ("On", _machine_line(facts.get("machine", {}))),
        ],
    }


def _wait(rows: Sequence[EpochMetrics]) -> Facts:
    """Share of the training time spent waiting for batches; empty if the run did not record it."""
    waited = sum(row.data_wait * row.train_seconds for row in rows)
    share = waited / max(sum(row.train_seconds for row in rows), 1e-9)
    return [("Waiting for data", f"{share:.1%} of the training time")] if waited else []


def kernels(trained: LoadedModel) -> Image:
    """Figure of the first layer's kernels."""
    figure = draw_kernels(trained.classifier, trained.name)
    count = next(trained.classifier.model.parameters()).shape[0]
    return Image(figure_bytes(figure, "png"), f"The {count} kernels of the first layer, as small images")


def predictions(trained: LoadedModel, dataset: Dataset, seed: int) -> list[dict[str, Any]]:
    """Top-5 predictions of validation images: random images, and random misclassified images."""
    names = class_names(trained, dataset)
    groups = []
    for heading, count, errors in (
        ("Random images", _PREDICTIONS, False),
        ("Misclassified images", _ERRORS, True),
    ):
        cases = some_predictions(trained.classifier, dataset, "val", count, seed, errors)
        cards = [
            {
                "image": _image(case.image, names),
                "name": case.image.name,
                "label": names[case.image.label],
                "bars": [
                    (names[label], probability, label == case.image.label)
                    for label, probability in zip(case.classes, case.probabilities, strict=True)
                ],
            }
            for case in cases
        ]
        groups.append({"heading": heading, "cards": cards})
    return groups


def neighbors(
    trained: LoadedModel, dataset: Dataset, seed: int, progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Random validation images with their nearest training images."""
    names = class_names(trained, dataset)
    queries = some_images(dataset, "val", trained.spec, _QUERIES, seed)
    found = find_neighbors(trained.classifier, queries, dataset, count=_NEIGHBORS, progress=progress)
    return [
        {
            "image": _image(one.query, names),
            "name": one.query.name,
            "label": names[one.query.label],
            "found": [
                {
                    "image": _image(image, names),
                    "name": image.name,
                    "label": names[image.label],
                    "distance": f"{distance:.4g}",
                    "same": image.label == one.query.label,
                }
                for image, distance in zip(one.found, one.distances, strict=True)
            ],
        }
        for one in found
    ]


def confusion(trained: LoadedModel, dataset: Dataset, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Confusion matrix, metrics and most confused pairs of the checkpoint on the validation split."""
    names = class_names(trained, dataset)
    from trainer.evaluation.evaluate import evaluate_checkpoints  # imports DALI

    evaluation = evaluate_checkpoints(
        this_machine(),
        [trained.checkpoint],
        dataset.url,
        "val",
        "center",
        _BATCH_SIZE,
        progress=progress,
    )
    matrix, metrics = evaluation.confusion, evaluation.metrics
    right, total = int(np.trace(matrix)), int(matrix.sum())
    figure = draw_confusion(matrix, names, "val, center crop")
    return {
        "image": Image(
            figure_bytes(figure, "svg"),
            f"Confusion matrix of {len(matrix)} classes: {right} of {total} images lie on the diagonal",
        ),
        "rows": [
            ("Top-1", _with_interval(metrics.top1, metrics.top1_interval)),
            ("Top-5", _with_interval(metrics.top5, metrics.top5_interval)),
            ("Loss", f"{metrics.loss:.4f} nats"),
            ("Calibration error", f"{metrics.ece:.2%}"),
            ("Always guessing the largest class", f"{metrics.largest_class:.1%} top-1"),
        ],
        "wide": len(matrix) > MOST_NAMED,
        "pairs": [
            (names[pair.label], names[pair.predicted], pair.count, pair.of)
            for pair in most_confused(matrix, _PAIRS)
        ],
    }


def data_facts(trained: LoadedModel, dataset: Dataset, seed: int) -> dict[str, Any]:
    """Splits and mean color (`rows`), PCA color directions, and augmented training crops of the dataset."""
    statistics = dataset.statistics
    total = max(sum(statistics.eigenvalues), 1e-12)
    directions = [
        {
            "value": f"{statistics.eigenvalues[k]:,.1f}",
            "deviation": f"{statistics.deviations[k]:.2f}",
            "share": statistics.eigenvalues[k] / total,
            "vector": [f"{x:+.3f}" for x in statistics.eigenvectors[k]],
            "strip": [
                "#{:02x}{:02x}{:02x}".format(*color) for color in colors_along(statistics, k, _STRIP_STEPS)
            ],
        }
        for k in range(3)
    ]
    rows: Facts = [
        (split, f"{dataset.samples(split):,} images in {len(shards):,} shards")
        for split, shards in dataset.manifest.splits.items()
    ]
    mean = ", ".join(f"{name} {x:.2f}" for name, x in zip("RGB", statistics.mean, strict=True))
    rows.append(("mean", f"{mean} of 255, over {statistics.pixels:,} pixels"))
    return {"rows": rows, "directions": directions, "crops": _training_crops(trained, dataset, seed)}


def _training_crops(trained: LoadedModel, dataset: Dataset, seed: int) -> list[Image]:
    """Crops of one training batch with the mean added back; none without DALI."""
    if not has_dali():
        return []
    from pipeline.loader.loader import Loader

    statistics = dataset.statistics
    recipe = _recipe(trained.folder) if trained.folder else None
    noise = color_noise(recipe.color_noise if recipe else "none", statistics)
    view = TrainView(trained.spec.crop, statistics.mean, noise=noise)
    count = min(_CROPS, dataset.samples("train"))
    with Loader(dataset, "train", view, count, seed=seed, keys=True) as loader:
        batch = next(iter(loader))
    pixels = batch.images.permute(0, 2, 3, 1).numpy() * (noise.divisor if noise else 1.0) + statistics.mean
    crops: NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    names = class_names(trained, dataset)
    return [
        Image(encode(crop, _JPEG_QUALITY), f"Training crop of {key}, {names[label]}")
        for crop, key, label in zip(crops, batch.keys, batch.labels.tolist(), strict=True)
    ]


def recipe(run: Path) -> dict[str, Any]:
    """All settings of the recipe, and the stages that change some of them."""
    found = _recipe(run)
    settings = {name: value for name, value in asdict(found).items() if name != "stages"}
    stages = [
        {name: value for name, value in asdict(stage).items() if value is not None} for stage in found.stages
    ]
    return {"settings": settings, "stages": stages}


def _recipe(run: Path) -> Recipe:
    return load_recipe(str(run / RECIPE_FILE))


def _image(image: NamedImage, names: Sequence[str]) -> Image:
    return Image(encode(image.crop, _JPEG_QUALITY), f"{names[image.label]}: {image.name}")


def _with_interval(share: float, interval: tuple[float, float]) -> str:
    return "{:.2%}, 95 % interval {:.2%} to {:.2%}".format(share, *interval)


def _dataset_line(facts: dict[str, Any], dataset: Dataset | None) -> str:
    if dataset is None:
        return f"{facts.get('dataset', 'unknown')} (not found)"
    counts = ", ".join(f"{dataset.samples(split):,} {split}" for split in dataset.manifest.splits)
    same = dataset.fingerprint == facts.get("dataset_sha256")
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
