"""Evaluation crops of single images, equal to the loader's, without DALI.

Shapes: B batch, V views (1, or 10 for ten crops), S side of the crop.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.images.codec import DecodeError, decode, resize_shorter, resize_square
from trainer.models.classifier import Spec

Crop = NDArray[np.uint8]
"""One crop of an image, uint8 (S, S, 3) RGB."""
CROPS = NDArray[np.uint8]
"""All views of an image, uint8 (V, S, S, 3) RGB."""

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
        return _center(resize_shorter(found.pixels, spec.size, found.shape), spec.crop)
    except DecodeError as error:
        raise UsageError(
            f"a stored image does not decode ({error}); run `alexnet-prep verify` on the dataset to find it"
        ) from error


def crop_of_file(path: Path, spec: Spec) -> Crop:
    """Prepare an image file as `alexnet-prep shard` does, and cut its center crop.

    Args:
        path: Path of the image file.
        spec: Image size and crop of the network.

    Returns:
        uint8 (S, S, 3) RGB.

    Raises:
        UsageError: the file cannot be read, or is not an image.
    """
    return _center(_square_of_file(path, spec), spec.crop)


def crops_of_file(path: Path, spec: Spec, views: str, exif_rotate: bool = False) -> CROPS:
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
    square, side = _square_of_file(path, spec, exif_rotate), spec.crop
    if views == "center":
        return _center(square, side)[None]
    far = spec.size - side
    corners = [square[y : y + side, x : x + side] for y in (0, far) for x in (0, far)]
    five = np.stack([*corners, _center(square, side)])
    return np.concatenate([five, five[:, :, ::-1]])


def _square_of_file(path: Path, spec: Spec, exif_rotate: bool = False) -> Crop:
    try:
        data = path.read_bytes()
        found = decode(data, _MOST_MEGAPIXELS, size=spec.size, exif_rotate=exif_rotate)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name an image file") from error
    except DecodeError as error:
        raise UsageError(f"{path}: cannot be read as an image ({error}); name another") from error
    return resize_square(found.pixels, spec.size)


def as_batch(crops: Sequence[Crop]) -> Tensor:
    """Stack crops, uint8 (S, S, 3) each, to float32 (B, 3, S, S), 0..255, for `Classifier.classify`."""
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()


def _center(pixels: Crop, side: int) -> Crop:
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]
