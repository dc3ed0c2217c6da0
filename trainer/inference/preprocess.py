"""Evaluation crops of single images, equal to the loader's, without DALI.

Shapes: B batch, V views (1, or 10 for ten crops), S side of the crop.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arguments import checked
from pipeline.errors import UsageError
from pipeline.images.codec import DecodeError, decode, resize_shorter, resize_square
from pipeline.loader.views import five_corners
from trainer.models.classifier import Spec

Crop = NDArray[np.uint8]
"""One crop of an image, uint8 (S, S, 3) RGB."""
Crops = NDArray[np.uint8]
"""All views of an image, uint8 (V, S, S, 3) RGB."""

Views = Literal["center", "ten-crop"]
"""Crops of single images, of those of `EvalView`."""

# The default limit of `alexnet-prep shard`.
_MOST_MEGAPIXELS = 100.0


def crop_of_stored(data: bytes, spec: Spec) -> Crop:
    """Decode an image from a dataset's shard and cut its center crop.

    Args:
        data: The encoded image, usually a JPEG.
        spec: Image size and crop of the network.

    Returns:
        uint8 (S, S, 3) RGB.

    Raises:
        UsageError: the image does not decode.
    """
    try:
        found = decode(data, _MOST_MEGAPIXELS, size=spec.size)
        scaled = resize_shorter(found.pixels, spec.size, found.shape)
        top, left = ((side - spec.crop) // 2 for side in scaled.shape[:2])
        return scaled[top : top + spec.crop, left : left + spec.crop]
    except DecodeError as error:
        raise UsageError(
            f"a stored image does not decode ({error}); run `alexnet-prep verify` on the dataset to find it"
        ) from error


def crop_of_file(path: Path, spec: Spec) -> Crop:
    """Prepare an image file as `alexnet-prep shard` does, and cut its center crop, uint8 (S, S, 3) RGB.

    Raises:
        UsageError: the file cannot be read, or is not an image.
    """
    crop: Crop = crops_of_file(path, spec, "center")[0]
    return crop


@checked()
def crops_of_file(path: Path, spec: Spec, views: Views, exif_rotate: bool = False) -> Crops:
    """Prepare an image file as `alexnet-prep shard` does, and cut its center crop or ten crops.

    Args:
        path: Path of the image file.
        spec: Image size and crop of the network.
        views: "center" (V = 1) or "ten-crop" (V = 10, in the order of `EvalView`).
        exif_rotate: Whether to rotate the image upright by its EXIF orientation.

    Returns:
        uint8 (V, S, S, 3) RGB.

    Raises:
        UsageError: the file cannot be read, or is not an image.
    """
    try:
        data = path.read_bytes()
        found = decode(data, _MOST_MEGAPIXELS, size=spec.size, exif_rotate=exif_rotate)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name an image file") from error
    except DecodeError as error:
        raise UsageError(f"{path}: cannot be read as an image ({error}); name another") from error
    square = resize_square(found.pixels, spec.size)
    corners = five_corners(spec.size - spec.crop)
    corners = corners[-1:] if views == "center" else corners
    crops = np.stack([square[y : y + spec.crop, x : x + spec.crop] for y, x in corners])
    return crops if views == "center" else np.concatenate([crops, crops[:, :, ::-1]])


def as_batch(crops: Sequence[Crop]) -> Tensor:
    """Stack crops, uint8 (S, S, 3) each, to float32 (B, 3, S, S), 0..255, for `Classifier.classify`.

    Crops of several views, (V, S, S, 3) each, are stacked to (B, V, 3, S, S).
    """
    return torch.from_numpy(np.stack(crops)).movedim(-1, -3).float()
