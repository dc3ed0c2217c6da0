"""Views: data classes that describe crops, flips, normalization and color noise of images."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.arguments import COUNT, POSITIVE, check_number, check_record, checked
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
    """Color noise x ← (x − mean + mixing · z) / divisor; z ~ N(0, I) is drawn per image and epoch.

    Attributes:
        mixing: float32 (3, 3). Row c has channel c's part of each of the three directions, in gray levels
            per unit of z.
        divisor: Scales the variance back to that of images without noise; 1 if the recipe does not.

    Raises:
        UsageError: The divisor is not above 0.
    """

    mixing: NDArray[np.float32]
    divisor: float = 1.0

    def __post_init__(self) -> None:
        check_record(self, divisor=POSITIVE)


@checked()
def color_noise(kind: NoiseKind, statistics: Statistics) -> ColorNoise | None:
    """Return the PCA color noise of a kind, or None for "none".

    Args:
        kind: "paper" adds `[p1 p2 p3][α1λ1 α2λ2 α3λ3]ᵀ`, α ~ N(0, 0.1), with the eigenvalues λ of the
            covariance of pixels scaled to 0..1 (the paper gives no scale; on 0..255 the noise would drown
            the image). "source" is the released code's (x − mean + 0.1 V(σ∘z)) / 1.1 with σ = √λ on the
            0..255 scale. "none" adds nothing.
        statistics: Pixel statistics of the training split, 0..255.

    Raises:
        UsageError: There is no such kind.
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
    """Training view: a random crop, flipped horizontally with probability ½, and normalized.

    Attributes:
        crop: Side of the network's input in pixels.
        mean: (R, G, B) subtracted from each pixel, 0..255; zeros if the model subtracts a mean image.
        std: (R, G, B) by which each channel is divided.
        noise: Color noise, or None.
        augmentation: "paper" cuts a square of `crop` pixels, at a position drawn uniformly from all.
            "random-resized-crop" cuts 8 to 100 % of the image's area with an aspect ratio of 3:4 to 4:3
            and scales it to the square (Szegedy et al. 2014, section 6; the bounds and the ten tries are
            those of torchvision's `RandomResizedCrop`).
        crop_group: Number of images, one after the other in a global batch, that are cropped and flipped
            alike; the last ones of a batch may be fewer. Color noise is each image's own.

    Raises:
        UsageError: `augmentation` is another word, or a number is out of range.
    """

    crop: int = 224
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: ColorNoise | None = None
    augmentation: Augmentation = "paper"
    crop_group: int = 1

    def __post_init__(self) -> None:
        check_record(self, crop=COUNT, crop_group=COUNT)
        for color in range(3):
            check_number(f"mean[{color}]", self.mean[color])
            check_number(f"std[{color}]", self.std[color], *POSITIVE)


@dataclass(frozen=True)
class EvalView:
    """Evaluation view: crops of the stored pixels, 0..255, without normalization.

    Each model normalizes its own input, so that models with different preprocessing can share one pass.

    Attributes:
        name: "center" (one crop), "ten-crop" (the four corners and the center of the center square, then
            their mirror images in the same order), or "full-resize" (the whole image, resized to a square
            without keeping its aspect ratio).
        crop: Side of the network's input in pixels.

    Raises:
        UsageError: `name` is another word, or the crop is not at least 1.
    """

    name: ViewName = "center"
    crop: int = 224

    def __post_init__(self) -> None:
        check_record(self, crop=COUNT)


def five_corners(free: int) -> tuple[tuple[int, int], ...]:
    """Return the corners (y, x) of ten crops: upper left and right, lower left and right, center.

    Args:
        free: Side of the square minus that of the crop, in pixels.
    """
    # Half of an odd free space is rounded down, as when squares are cut for storage.
    return (0, 0), (0, free), (free, 0), (free, free), (free // 2, free // 2)


# Defaults of torchvision's RandomResizedCrop: fraction of the area, aspect ratio, tries.
RESIZED_AREA = (0.08, 1.0)
RESIZED_RATIO = (3 / 4, 4 / 3)
RESIZED_TRIES = 10


def check_crop(crop: int, size: int) -> None:
    """Check that a crop fits into the stored images.

    Args:
        crop: Side of the crop in pixels.
        size: Shorter side of the stored images in pixels.

    Raises:
        UsageError: `crop` is larger than `size`, or below 1.
    """
    if not 0 < crop <= size:
        raise UsageError(
            f"crop of {crop} px from images whose shorter side is {size} px; choose at most {size} "
            f"(--set crop={round(size * 224 / 256)}), or prepare the dataset with a larger --size"
        )


def check_view(view: TrainView | EvalView, size: int) -> None:
    """Check that a view's crop fits into the stored images. A view that resizes may have any size above 0.

    Args:
        view: The view.
        size: Shorter side of the stored images in pixels.

    Raises:
        UsageError: The crop is larger than `size`, or below 1.
    """
    kind = view.augmentation if isinstance(view, TrainView) else view.name
    scales = kind in ("random-resized-crop", "full-resize")
    check_crop(min(view.crop, size) if scales else view.crop, size)
