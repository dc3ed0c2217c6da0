"""The center crops of single images, as the evaluation cuts them, without DALI.

Shapes: S crop.
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
CROPS = NDArray[np.uint8]
"""The views of an image, (V, S, S, 3)."""

# As `alexnet-prep shard` bounds the images that it reads.
_MOST_MEGAPIXELS = 100.0


def crop_of_stored(data: bytes, spec: Spec) -> Crop:
    """Cut the center out of an image as a dataset stores it, uint8 (S, S, 3) RGB.

    Raises:
        UsageError: it does not decode.
    """
    try:
        found = decode(data, _MOST_MEGAPIXELS, size=spec.size)
        return _center(resize_shorter(found.pixels, spec.size, found.shape), spec.crop)
    except DecodeError as error:
        raise UsageError(
            f"a stored image does not decode ({error}); `alexnet-prep verify` names it"
        ) from error


def crop_of_file(path: Path, spec: Spec) -> Crop:
    """Prepare an image file as `alexnet-prep shard` does, and cut its center out, uint8 (S, S, 3) RGB.

    Raises:
        UsageError: no such file, or not an image.
    """
    return _center(_square_of_file(path, spec), spec.crop)


def crops_of_file(path: Path, spec: Spec, views: str, exif_rotate: bool = False) -> CROPS:
    """The same for "center" (V = 1) or "ten-crop" (V = 10, in the order of `EvalView`), turned on request.

    Raises:
        UsageError: no such file, or not an image.
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
        raise UsageError(f"{path}: {error.strerror}; name an image") from error
    except DecodeError as error:
        raise UsageError(f"{path}: cannot be read as an image ({error}); name another") from error
    return resize_square(found.pixels, spec.size)


def as_batch(crops: Sequence[Crop]) -> Tensor:
    """Crops, uint8 (S, S, 3) each → float32 (B, 3, S, S), 0..255, for `Classifier.classify`."""
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()


def _center(pixels: Crop, side: int) -> Crop:
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]
