"""Draw a preview of training data: stored images, augmented crops of them, and the PCA plot of the colors."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.manifest import write_manifest
from pipeline.dataset.samples import read_stored
from pipeline.dataset.tar import describe, write_shard
from pipeline.images.codec import decode, resize_square
from pipeline.images.grid import grid, stacked, titled
from pipeline.images.pca_plot import draw_pca_plot
from pipeline.loader.loader import Loader
from pipeline.loader.views import NoiseKind, TrainView, color_noise

_CROPS = 7


def draw_preview(
    dataset: Dataset, images: int = 6, crop: int = 224, noise: NoiseKind = "paper", seed: int = 0
) -> Image.Image:
    """Draw one row per training image: the image as stored, then seven crops as the network sees them.

    The crops come from the training loader itself; the mean is added back for display. The PCA plot of the
    training pixels' colors stands below the rows: see `pipeline.images.pca_plot.draw_pca_plot`.

    Args:
        dataset: an opened dataset.
        images: number of rows.
        crop: side of the crops in pixels. If the images are too small for it, the crops are 224/256 of their
            shorter side.
        noise: kind of color noise: "paper", "source" or "none".
        seed: seed of the augmentation.

    Returns:
        An RGB image.
    """
    crop = min(crop, round(dataset.image.size * 224 / 256))
    stored = _first_samples(dataset, images)
    seen = _augmented(dataset, stored, crop, noise, seed)
    cells = []
    for key, (jpeg, _) in stored.items():
        cells += [_thumbnail(jpeg, crop), *seen[key]]
    canvas = grid(cells, columns=1 + _CROPS, gap=6, margin=12)
    canvas = stacked([canvas, draw_pca_plot(dataset.statistics, canvas.shape[1])], gap=24)
    names = {info.id: info.name for info in dataset.manifest.classes}
    labels = ", ".join(dict.fromkeys(names[dataset.classes[label]] for _, label in stored.values()))
    title = f"{len(stored)} training images ({_short(labels)})"
    explanation = (
        f"Left: as stored, {_size(dataset)}. Right: {_CROPS} random {crop} px crops, mirrored or not, "
        f"color noise: {noise}; mean added back."
    )
    return titled(canvas, [title, explanation], size=24)


def _first_samples(dataset: Dataset, count: int) -> dict[str, tuple[bytes, int]]:
    """Key → (JPEG, label) of the first training samples, which were shuffled when they were written."""
    found = read_stored(dataset, "train", range(min(count, dataset.samples("train"))))
    return {image.key: (image.data, image.label) for image in found}


def _augmented(
    dataset: Dataset, stored: dict[str, tuple[bytes, int]], crop: int, noise: NoiseKind, seed: int
) -> dict[str, list[NDArray[np.uint8]]]:
    """Key → `_CROPS` crops, uint8 (crop, crop, 3), loaded from a temporary dataset of these images alone."""
    statistics = dataset.statistics
    colors = color_noise(noise, statistics)
    view = TrainView(crop=crop, mean=statistics.mean, noise=colors)
    scale = colors.divisor if colors else 1.0
    seen: dict[str, list[NDArray[np.uint8]]] = {key: [] for key in stored}
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "train" / "train-000000.tar"
        tar.parent.mkdir()
        with write_shard(tar, dataset.manifest.label_width) as writer:
            for key, (jpeg, label) in stored.items():
                writer.add(key, jpeg, label)
        shard = describe(Path(folder), tar, len(stored))
        manifest = dataclasses.replace(dataset.manifest, splits={"train": (shard,)})
        write_manifest(Path(folder), manifest)
        small = Dataset.open(folder)
        with Loader(small, "train", view, len(stored), seed=seed, keys=True) as loader:
            for _ in range(_CROPS):
                for batch in loader:
                    pixels = batch.images.permute(0, 2, 3, 1).numpy() * scale + statistics.mean
                    for key, crop_pixels in zip(batch.keys, pixels, strict=True):
                        seen[key].append(np.clip(np.rint(crop_pixels), 0, 255).astype(np.uint8))
    return seen


def _thumbnail(jpeg: bytes, size: int) -> NDArray[np.uint8]:
    return resize_square(decode(jpeg, max_megapixels=1e4, size=size).pixels, size)


def _size(dataset: Dataset) -> str:
    size = dataset.image.size
    return f"scaled to {size} px" if dataset.image.mode == "original" else f"{size} px, scaled down"


def _short(text: str, limit: int = 90) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
