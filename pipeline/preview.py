"""Draw a preview of training data: stored images, augmented crops of them, and the PCA plot of the colors."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.arguments import COUNT, checked
from pipeline.dataset.dataset import Dataset
from pipeline.images.codec import decode, resize_square
from pipeline.images.figure import figure_of_pixels, grid, shortened, styled
from pipeline.images.pca_plot import draw_pca_plot
from pipeline.loader.augmentation import Draws, draw
from pipeline.loader.order import TrainingOrder
from pipeline.loader.threads.cutter import cut_image
from pipeline.loader.views import NoiseKind, TrainView, color_noise

_CROPS = 7
_PLOT_HEIGHT = 2.6  # inches


@checked(images=COUNT, crop=COUNT)
@styled
def draw_preview(
    dataset: Dataset, images: int = 6, crop: int = 224, noise: NoiseKind = "paper", seed: int = 0
) -> Figure:
    """Draw one row per training image: the image as stored, then seven crops as the network sees them.

    The crops are those that the training loader shows of these images, were there no others, in its first
    seven epochs; the mean is added back for display. The PCA plot of the training pixels' colors stands
    below the rows: see `pipeline.images.pca_plot.draw_pca_plot`.

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
    samples = dataset.samples("train")
    stored = samples.stored(range(min(images, len(samples))))
    view = TrainView(crop, dataset.statistics.mean, noise=color_noise(noise, dataset.statistics))
    epochs = [_draws(len(stored), seed, epoch) for epoch in range(_CROPS)]
    cells = []
    for number, one in enumerate(stored):
        seen = [cut_image(one.data, view, dataset.image, draws[number]) for draws in epochs]
        cells += [_thumbnail(one.data, crop), *crops_of(np.stack(seen), view)]
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


def crops_of(images: NDArray[np.float32], view: TrainView) -> NDArray[np.uint8]:
    """Return training images as pixels, uint8 RGB: normalization is undone, augmentation is not.

    Args:
        images: float32 (…, S, S, 3), images of the loader.
        view: the view that made them.
    """
    scale = view.noise.divisor if view.noise else 1.0
    pixels: NDArray[np.float64] = np.rint(images * scale + np.asarray(view.mean))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _draws(count: int, seed: int, epoch: int) -> list[Draws]:
    """Return the random numbers of each of `count` images in an epoch of a loader that has no others."""
    draws = draw(seed, epoch, 0, count)
    rows = np.argsort(TrainingOrder([count], seed, epoch, count).batch(0).samples).tolist()
    return [draws.rows(row, row + 1) for row in rows]


def _thumbnail(jpeg: bytes, size: int) -> NDArray[np.uint8]:
    return resize_square(decode(jpeg, max_megapixels=1e4, size=size).pixels, size)
