"""How images become network inputs, as data: crops, flips, color noise and evaluation views."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.images.statistics import Statistics

NoiseKind = Literal["none", "paper", "source"]
Augmentation = Literal["paper", "random-resized-crop"]
ViewName = Literal["center", "ten-crop", "full-resize"]

# Krizhevsky et al. 2012, section 4.1: α ~ N(0, 0.1). The released code has the same factor.
_NOISE_DEVIATION = 0.1
_SOURCE_DIVISOR = 1.1


@dataclass(frozen=True)
class ColorNoise:
    """x ← (x − mean + mixing · z) / divisor with z ~ N(0, I) per image and presentation.

    Attributes:
        mixing: float32 (3, 3); row c gives channel c's share of each of the three directions, in
            gray levels per unit of z.
        divisor: brings the variance back to that of the image without noise, where the recipe does.
    """

    mixing: NDArray[np.float32]
    divisor: float = 1.0


def color_noise(kind: NoiseKind, statistics: Statistics) -> ColorNoise | None:
    """PCA color noise in one of two readings, or None for "none".

    "paper": add [p1 p2 p3][α1λ1 α2λ2 α3λ3]ᵀ, α ~ N(0, 0.1), with the eigenvalues λ of the covariance
    of pixels scaled to 0..1 (the text gives no scale; on 0..255 the noise would drown the image).
    "source": the released code's (x − mean + 0.1 V(σ∘z)) / 1.1 with σ = √λ on the 0..255 scale.
    """
    if kind == "none":
        return None
    vectors = np.asarray(statistics.eigenvectors).T  # columns are directions
    if kind == "paper":
        unit_values = np.asarray(statistics.eigenvalues) / 255.0**2
        mixing, divisor = vectors * (_NOISE_DEVIATION * unit_values * 255.0), 1.0
    else:
        mixing, divisor = vectors * (_NOISE_DEVIATION * statistics.deviations), _SOURCE_DIVISOR
    return ColorNoise(mixing.astype(np.float32), divisor)


@dataclass(frozen=True)
class TrainView:
    """A random part of the image, mirrored with probability ½.

    Attributes:
        crop: side of what the network sees, pixels.
        mean: (R, G, B) subtracted from each pixel, 0..255; zeros where a mean image is subtracted
            later.
        std: (R, G, B) each channel is divided by.
        noise: color noise, or None.
        augmentation: "paper" cuts a square of `crop` pixels, its corner uniform over every position;
            "random-resized-crop" cuts 8 to 100 % of the image's area with sides in a ratio of 3:4 to
            4:3 and scales that to the square (Szegedy et al. 2014, section 6; the bounds and the ten
            tries are those of torchvision's `RandomResizedCrop`).
    """

    crop: int = 224
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: ColorNoise | None = None
    augmentation: Augmentation = "paper"


@dataclass(frozen=True)
class EvalView:
    """What a network is shown of each image when it is measured: the pixels as stored, 0..255.

    Nothing is subtracted, so that networks with different preprocessing can share one pass; each applies
    its own.

    Attributes:
        name: "center" (one crop), "ten-crop" (four corners and center of the center square, then
            their mirror images in the same order), or "full-resize" (the whole image, squeezed into
            a square).
        crop: side of what the network sees, pixels.
    """

    name: ViewName = "center"
    crop: int = 224


# A hair below one half: an odd free space is rounded down, as it is when squares are cut for storage.
CENTER = 0.49999
# (x, y) of the crop's corner as shares of the free space: four corners, then the center.
FIVE_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (CENTER, CENTER))


# Torchvision's defaults.
RESIZED_AREA = (0.08, 1.0)
RESIZED_RATIO = (3 / 4, 4 / 3)
RESIZED_TRIES = 10


def check_crop(crop: int, size: int) -> None:
    """Refuse a crop that the stored images cannot hold.

    Raises:
        UsageError: `crop` exceeds `size`.
    """
    if not 0 < crop <= size:
        raise UsageError(
            f"crop of {crop} px from images whose shorter side is {size} px; choose at most {size} "
            f"(--set crop={round(size * 224 / 256)}), or prepare the dataset with a larger --size"
        )


def check_view(view: TrainView | EvalView, size: int) -> None:
    """Refuse a view whose crop the stored images cannot hold; one that scales can have any size.

    Raises:
        UsageError: the crop exceeds `size`.
    """
    scales = (view.augmentation if isinstance(view, TrainView) else view.name) in (
        "random-resized-crop",
        "full-resize",
    )
    check_crop(min(view.crop, size) if scales else view.crop, size)
