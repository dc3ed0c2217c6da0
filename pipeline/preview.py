"""Draw a preview of training data: stored images, augmented crops of them, and the PCA plot of the colors."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.arguments import COUNT, checked
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.manifest import write_manifest
from pipeline.dataset.samples import StoredImage, read_stored
from pipeline.dataset.shards import describe, write_shard
from pipeline.images.codec import decode, resize_square
from pipeline.images.figure import figure_of_pixels, grid, shortened, styled
from pipeline.images.pca_plot import draw_pca_plot
from pipeline.loader.loader import Batch, Loader
from pipeline.loader.views import NoiseKind, TrainView, color_noise

_CROPS = 7
_PLOT_HEIGHT = 2.6  # inches


@checked(images=COUNT, crop=COUNT)
@styled
def draw_preview(
    dataset: Dataset, images: int = 6, crop: int = 224, noise: NoiseKind = "paper", seed: int = 0
) -> Figure:
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

    Raises:
        UsageError: a number is out of range, or there is no such kind of noise.

    Returns:
        A figure in which each pixel of a crop is a pixel of the PNG.
    """
    size = dataset.image.size
    crop = min(crop, round(size * 224 / 256))
    # The first samples of a dataset are random ones: they were shuffled when they were written.
    stored = read_stored(dataset, "train", range(min(images, dataset.samples("train"))))
    view = TrainView(crop, dataset.statistics.mean, noise=color_noise(noise, dataset.statistics))
    seen = _augmented(dataset, stored, view, seed)
    cells = [cell for one in stored for cell in (_thumbnail(one.data, crop), *seen[one.key])]
    names = {info.id: info.name for info in dataset.manifest.classes}
    labels = ", ".join(dict.fromkeys(names[dataset.classes[one.label]] for one in stored))
    as_stored = f"scaled to {size} px" if dataset.image.mode == "original" else f"{size} px, scaled down"
    text = (
        f"{len(stored)} training images ({shortened(labels, 60)}). Left: as stored, {as_stored}.\n"
        f"Right: {_CROPS} random {crop} px crops, mirrored or not, color noise: {noise}; mean added back."
    )
    figure = figure_of_pixels([(text, grid(cells, 1 + _CROPS, gap=6))], below=_PLOT_HEIGHT)
    above = figure.get_figheight() - _PLOT_HEIGHT
    parts = figure.subfigures(2, squeeze=False, height_ratios=(above, _PLOT_HEIGHT))
    draw_pca_plot(parts[1, 0], dataset.statistics)
    return figure


def crops_of(batch: Batch, view: TrainView) -> NDArray[np.uint8]:
    """Return a batch's crops as images, uint8 (B, S, S, 3) RGB: normalization is undone, augmentation is not.

    Args:
        batch: a batch on the CPU.
        view: the view that made it.
    """
    scale = view.noise.divisor if view.noise else 1.0
    pixels = batch.images.permute(0, 2, 3, 1).numpy() * scale + view.mean
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _augmented(
    dataset: Dataset, stored: list[StoredImage], view: TrainView, seed: int
) -> dict[str, list[NDArray[np.uint8]]]:
    """Key → `_CROPS` crops, uint8 (crop, crop, 3), loaded from a temporary dataset of these images alone."""
    seen: dict[str, list[NDArray[np.uint8]]] = {one.key: [] for one in stored}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tar = Path(folder) / "train" / "train-000000.tar"
        tar.parent.mkdir()
        with write_shard(tar, dataset.manifest.label_width) as writer:
            for one in stored:
                writer.add(one.key, one.data, one.label)
        shard = describe(Path(folder), tar, len(stored))
        write_manifest(Path(folder), dataclasses.replace(dataset.manifest, splits={"train": (shard,)}))
        small = Dataset.open(folder)
        with Loader(small, "train", view, len(stored), seed=seed) as loader:
            for _ in range(_CROPS):
                for batch in loader:
                    for key, crop in zip(batch.keys, crops_of(batch, view), strict=True):
                        seen[key].append(crop)
    return seen


def _thumbnail(jpeg: bytes, size: int) -> NDArray[np.uint8]:
    return resize_square(decode(jpeg, max_megapixels=1e4, size=size).pixels, size)
