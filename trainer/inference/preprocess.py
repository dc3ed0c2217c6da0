"""Evaluation crops of single images: prepared, decoded and cut by the functions of preparation and loader.

Shapes: B batch, V views (10 for ten crops, else absent), S side of the crop.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arguments import checked
from pipeline.dataset.manifest import ImageFormat
from pipeline.errors import UsageError
from pipeline.images.codec import DecodeError, convert
from pipeline.loader.threads.cutter import cut_image
from pipeline.loader.views import EvalView
from trainer.models.classifier import Spec

Crops = NDArray[np.uint8]
"""Crops of an image, uint8 (S, S, 3) RGB, or all its views, (V, S, S, 3)."""

Views = Literal["center", "ten-crop"]
"""Crops of single images, of those of `EvalView`."""

# The defaults of `alexnet-prep shard`; the quality is for networks whose images another program encoded.
_MOST_MEGAPIXELS = 100.0
_QUALITY = 95


def crop_of_stored(data: bytes, crop: int, stored: ImageFormat) -> Crops:
    """Decode an image from a dataset's shard and cut its center crop.

    Args:
        data: The encoded image, usually a JPEG.
        crop: Side of the crop in pixels.
        stored: The dataset's image format.

    Returns:
        uint8 (S, S, 3) RGB, the pixels that the loader gives.

    Raises:
        UsageError: the image does not decode.
    """
    try:
        return cut_image(data, EvalView("center", crop), stored).astype(np.uint8)
    except DecodeError as error:
        raise UsageError(
            f"a stored image does not decode ({error}); run `alexnet-prep verify` on the dataset to find it"
        ) from error


@checked()
def crops_of_file(path: Path, spec: Spec, views: Views = "center", exif_rotate: bool = False) -> Crops:
    """Prepare an image file as the network's dataset was prepared, and cut its center crop or ten crops.

    Args:
        path: Path of the image file.
        spec: Image format and crop of the network.
        views: "center" or "ten-crop" (in the order of `EvalView`).
        exif_rotate: Whether to rotate the image upright by its EXIF orientation.

    Returns:
        uint8 (S, S, 3) RGB, or (10, S, S, 3) for ten crops: the pixels that the loader gives of the file once
        it is prepared.

    Raises:
        UsageError: the file cannot be read, or is not an image.
    """
    try:
        prepared = convert(
            path.read_bytes(),
            spec.size,
            mode=spec.mode,
            quality=spec.quality or _QUALITY,
            max_megapixels=_MOST_MEGAPIXELS,
            exif_rotate=exif_rotate,
        )
        stored = ImageFormat(spec.size, spec.mode, spec.quality)
        return cut_image(prepared.jpeg, EvalView(views, spec.crop), stored).astype(np.uint8)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name an image file") from error
    except DecodeError as error:
        raise UsageError(f"{path}: cannot be read as an image ({error}); name another") from error


def as_batch(crops: Sequence[Crops]) -> Tensor:
    """Stack crops, uint8 (S, S, 3) each, to float32 (B, 3, S, S), 0..255, for `Classifier.classify`.

    Crops of several views, (V, S, S, 3) each, are stacked to (B, V, 3, S, S).
    """
    # Contiguous, as the loader's batches are: other strides would change the order of sums.
    return torch.from_numpy(np.stack(crops)).movedim(-1, -3).float().contiguous()
