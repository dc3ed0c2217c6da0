"""Augmentation as data: what is cut from each image, flipped and added, as arrays of a batch.

    numbers of a global batch ─ sliced by each process ─► windows in pixels, from the images' sizes

The numbers depend on seed, epoch and batch alone, and a backend only carries out what the arrays say. They
are not pixels, because the images of a dataset may differ in size.

Shapes: B batch, S crop.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import ImageFormat
from pipeline.images.codec import shape_of
from pipeline.loader.views import RESIZED_AREA, RESIZED_RATIO, RESIZED_TRIES, EvalView, TrainView
from pipeline.seeds import Purpose, random_generator

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Random numbers of a training batch, a row for each image.

    Attributes:
        corner: float64 (B, 2) in 0..1, where the window lies on each axis: (y, x).
        flip: bool (B,), whether the image is mirrored.
        noise: float64 (B, 3), standard normal: z of the color noise.
        area: float64 (B, tries), fraction of the image's area, one for each try.
        log_ratio: float64 (B, tries), logarithm of width / height, one for each try.
    """

    corner: Floats
    flip: NDArray[np.bool_]
    noise: Floats
    area: Floats
    log_ratio: Floats

    def rows(self, begin: int, end: int) -> "Draws":
        """Return the rows `begin` to `end - 1`."""
        rows = slice(begin, end)  # field by field, because this is done for every few images
        return Draws(
            self.corner[rows], self.flip[rows], self.noise[rows], self.area[rows], self.log_ratio[rows]
        )


def draw(seed: int, epoch: int, batch: int, count: int, crop_group: int = 1) -> Draws:
    """Draw the numbers of a global batch.

    Args:
        seed: Seed of the epoch's order and augmentation.
        epoch: Number of the epoch, counted from 0.
        batch: Number of the batch in the epoch, counted from 0.
        count: Images in the global batch.
        crop_group: Images, one after the other in the global batch, that share all numbers but the noise.
    """
    generator = random_generator(seed, Purpose.AUGMENTATION, epoch, batch)
    low, high = np.log(RESIZED_RATIO)
    drawn = Draws(
        corner=generator.random((count, 2)),
        flip=generator.random(count) < 0.5,
        noise=generator.standard_normal((count, 3)),
        area=generator.uniform(*RESIZED_AREA, (count, RESIZED_TRIES)),
        log_ratio=generator.uniform(low, high, (count, RESIZED_TRIES)),
    )
    if crop_group == 1:
        return drawn
    firsts = np.arange(count) // crop_group * crop_group  # each group takes the numbers of its first image
    shared = {field.name: getattr(drawn, field.name)[firsts] for field in fields(drawn)}
    return Draws(**shared | {"noise": drawn.noise})


def shifts(view: TrainView, draws: Draws) -> NDArray[np.float32]:
    """Return what is subtracted from each image's colors: the mean less the color noise, float32 (B, 3)."""
    shift = np.broadcast_to(np.asarray(view.mean), draws.noise.shape)
    if view.noise is not None:
        shift = shift - draws.noise @ view.noise.mixing.astype(np.float64).T
    return np.ascontiguousarray(shift, np.float32)


def divisors(view: TrainView) -> NDArray[np.float32]:
    """Return what each color is divided by after the subtraction, float32 (3,)."""
    scale = view.noise.divisor if view.noise is not None else 1.0
    return np.asarray([std * scale for std in view.std], np.float32)


def shape_in_loader(
    data: bytes | memoryview, view: TrainView | EvalView, stored: ImageFormat
) -> tuple[int, int]:
    """Return height and width of the pixels from which a view cuts its window of a stored image.

    Raises:
        DecodeError: It is not an image, or damaged.
    """
    if stored.mode == "square":
        return stored.size, stored.size
    shape = shape_of(data)
    if scales_first(view, stored):
        height, width = scaled_shapes(np.array([shape]), stored.size)[0].tolist()
        return height, width
    return shape


def scaled_shapes(shapes: Integers, size: int) -> Integers:
    """Scale the shorter side of each shape to `size`, rounding the longer one, int64 (B, 2).

    Args:
        shapes: int64 (B, 2), height and width of each image.
        size: Shorter side of the result in pixels.
    """
    scaled: Integers = np.rint(shapes * size / shapes.min(axis=1, keepdims=True)).astype(np.int64)
    return np.maximum(scaled, size)


def windows(
    view: TrainView | EvalView, stored: ImageFormat, draws: Draws | None, shapes: Integers
) -> Integers:
    """Return the window (y, x, height, width) that is cut from each image, int64 (B, 4).

    A window that is larger or smaller than the crop is scaled to it. Ten crops are cut from the window, which
    is the center square then.

    Args:
        view: Crops of the images.
        stored: Size and mode of the stored images.
        draws: Random numbers of the batch; None for an `EvalView`.
        shapes: int64 (B, 2), height and width of each image from which the window is cut: those of images
            stored at their original size after scaling (`scaled_shapes`), where `scales_first` says so.
    """
    if isinstance(view, EvalView):
        if view.name == "full-resize":
            return np.concatenate([np.zeros_like(shapes), shapes], axis=1)
        # The center square first, so that rounding is that of stored squares.
        corner = (shapes - stored.size) // 2
        side = stored.size
        if view.name == "center":
            corner, side = corner + (stored.size - view.crop) // 2, view.crop
        return np.concatenate([corner, np.full_like(shapes, side)], axis=1)
    assert draws is not None
    if view.augmentation == "random-resized-crop":
        return _random_resized(draws, shapes)
    free = shapes - view.crop
    corner = np.minimum((draws.corner * (free + 1)).astype(np.int64), free)
    return np.concatenate([corner, np.full_like(shapes, view.crop)], axis=1)


def scales_first(view: TrainView | EvalView, stored: ImageFormat) -> bool:
    """Whether a view scales images stored at their original size before it cuts its window."""
    kind = view.augmentation if isinstance(view, TrainView) else view.name
    return stored.mode == "original" and kind not in ("random-resized-crop", "full-resize")


def _random_resized(draws: Draws, shapes: Integers) -> Integers:
    """Take the first of ten tries that fits into the image, else the largest center window of clamped ratio.

    This is the rule of torchvision's `RandomResizedCrop`.
    """
    sides = shapes[:, None, :]  # (B, 1, 2)
    area, ratio = sides.prod(axis=2) * draws.area, np.exp(draws.log_ratio)
    tried = np.rint(np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=2)).astype(np.int64)
    fits = ((tried > 0) & (tried <= sides)).all(axis=2)
    size = tried[np.arange(len(shapes)), fits.argmax(axis=1)]
    corner = np.minimum((draws.corner * (shapes - size + 1)).astype(np.int64), shapes - size)
    low, high = RESIZED_RATIO
    height, width = shapes.T
    clamped = np.stack(
        [np.minimum(height, np.rint(width / low)), np.minimum(width, np.rint(height * high))], axis=1
    ).astype(np.int64)
    chosen = np.where(fits.any(axis=1)[:, None], size, clamped)
    corner = np.where(fits.any(axis=1)[:, None], corner, (shapes - clamped) // 2)
    return np.concatenate([corner, chosen], axis=1)
