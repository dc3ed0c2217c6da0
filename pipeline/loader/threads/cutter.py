"""Decode stored images and cut, flip and normalize them, on the CPU; one cutter for each thread.

Shapes: B batch, V views (10 for ten crops, else absent), S crop; H, W of an image.
"""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.dataset.manifest import ImageFormat
from pipeline.images.codec import DecodeError, Pixels, decode, resize_shorter
from pipeline.images.library_settings import without_ipp
from pipeline.loader.augmentation import (
    Draws,
    Integers,
    divisors,
    scales_first,
    shape_in_loader,
    shifts,
    windows,
)
from pipeline.loader.views import EvalView, TrainView, five_corners

Encoded = bytes | memoryview


class Cuts(NamedTuple):
    """What is cut from some images; a list element for each.

    Attributes:
        windows: y, x, height and width of the window.
        flips: Whether it is mirrored.
        shifts: (R, G, B) that is subtracted.
    """

    windows: list[list[int]]
    flips: list[bool]
    shifts: list[list[float]]


class Cutter:
    """Makes rows of batches from encoded images. Not for several threads at once."""

    def __init__(self, view: TrainView | EvalView, stored: ImageFormat) -> None:
        """Note what is cut.

        Args:
            view: Crops, flips and normalization.
            stored: Size and mode of the stored images.
        """
        self._view, self._stored = view, stored
        self._scales_first = scales_first(view, stored)
        self._divisors = divisors(view) if isinstance(view, TrainView) else np.ones(3, np.float32)
        self._decoded = np.empty(stored.size * stored.size * 3, np.uint8)
        # Used again for each image, because fresh memory must first be zeroed.
        self._scaled, self._flipped = np.empty((2, view.crop, view.crop, 3), np.uint8)
        self._planes = [*np.empty((3, view.crop, view.crop), np.uint8)]
        self._divides = bool((self._divisors != 1).any())
        # A divisor for each value of a crop: dividing by three numbers in turns takes ten times as long.
        self._divisor_image: NDArray[np.float32] | None = None

    def decode(self, data: Encoded, shape: tuple[int, int]) -> Pixels:
        """Decode an image, uint8 (H, W, 3); one stored at its original size is scaled where the view says so.

        Args:
            data: The encoded image.
            shape: Its height and width, as `shape_in_loader` returned them.

        Returns:
            The pixels, which are valid until the next call.

        Raises:
            DecodeError: It is not an image, damaged, or of another shape.
        """
        if self._scales_first:
            found = decode(bytes(data), math.inf, size=self._stored.size)
            pixels = resize_shorter(found.pixels, self._stored.size, found.shape)
        else:
            if math.prod(shape) * 3 > len(self._decoded):
                self._decoded = np.empty(math.prod(shape) * 3, np.uint8)
            try:
                pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=self._decoded)
            except ValueError:  # no JPEG, CMYK, odd bytes that do no harm, or a larger image
                pixels = decode(bytes(data), math.inf).pixels
        if pixels.shape[:2] != shape:
            height, width = pixels.shape[:2]
            raise DecodeError(f"it has {width}x{height} pixels instead of {shape[1]}x{shape[0]}")
        return pixels

    def decode_into(self, data: Encoded, out: Pixels) -> None:
        """Decode a stored square to `out`, uint8 (H, H, 3).

        Raises:
            DecodeError: It is not an image, damaged, or of another shape.
        """
        buffer, self._decoded = self._decoded, out.reshape(-1)
        try:
            pixels = self.decode(data, out.shape[:2])
        finally:
            self._decoded = buffer
        if not np.may_share_memory(pixels, out):
            out[:] = pixels

    def cuts(self, draws: Draws | None, shapes: Integers) -> Cuts:
        """Compute what is cut from images of these shapes.

        Args:
            draws: Random numbers, a row for each image; None for an `EvalView`.
            shapes: int64 (B, 2), height and width of each image.
        """
        found = windows(self._view, self._stored, draws, shapes).tolist()
        if draws is None or isinstance(self._view, EvalView):
            return Cuts(found, [False] * len(shapes), [[0.0] * 3] * len(shapes))
        return Cuts(found, draws.flip.tolist(), shifts(self._view, draws).tolist())

    def cut(self, pixels: Pixels, cuts: Cuts, row: int, out: NDArray[Any]) -> None:
        """Cut an image, and write the crops to its row of the batch.

        Args:
            pixels: uint8 (H, W, 3).
            cuts: What to cut.
            row: Number of the image in `cuts`.
            out: The row, float16 or float32 (S, S, 3) or (3, S, S), with a leading V for ten crops.
        """
        y, x, height, width = cuts.windows[row]
        part, side, shift = pixels[y : y + height, x : x + width], self._view.crop, cuts.shifts[row]
        if isinstance(self._view, EvalView) and self._view.name == "ten-crop":
            for number, (top, left) in enumerate(five_corners(height - side)):
                crop = part[top : top + side, left : left + side]
                self._normalize(crop, shift, out[number])
                cv2.flip(crop, 1, dst=self._flipped)
                self._normalize(self._flipped, shift, out[number + 5])
            return
        if isinstance(self._view, EvalView) and self._view.name == "full-resize":
            squeezed = Image.fromarray(part).resize((side, side), Image.Resampling.BILINEAR)
            part = np.asarray(squeezed)
        elif (height, width) != (side, side):
            _scale(part, self._scaled)
            part = self._scaled
        if cuts.flips[row]:
            cv2.flip(part, 1, dst=self._flipped)
            part = self._flipped
        self._normalize(part, shift, out)

    def _normalize(self, crop: Pixels, shift: list[float], out: NDArray[Any]) -> None:
        """Write (crop − shift) ÷ divisors to `out`, uint8 (S, S, 3) to (S, S, 3) or (3, S, S)."""
        subtract: Any = cv2.subtract  # whose annotations know no numbers
        depth = cv2.CV_32F if out.dtype == np.float32 else cv2.CV_16F
        if out.shape == crop.shape:
            subtract(crop, (*shift, 0.0), dst=out, dtype=depth)
        else:
            cv2.split(crop, self._planes)
            for plane, color, row in zip(self._planes, shift, out, strict=True):
                subtract(plane, color, dst=row, dtype=depth)
        if self._divides:
            if self._divisor_image is None or self._divisor_image.shape != out.shape:
                divisors = self._divisors if out.shape == crop.shape else self._divisors[:, None, None]
                self._divisor_image = np.ascontiguousarray(np.broadcast_to(divisors, out.shape))
            np.divide(out, self._divisor_image, out=out, casting="same_kind")


def cut_image(
    data: Encoded, view: TrainView | EvalView, stored: ImageFormat, draws: Draws | None = None
) -> NDArray[np.float32]:
    """Decode and cut a single image as the loader does.

    Args:
        data: The encoded image.
        view: Crops, flips and normalization.
        stored: Size and mode of the dataset that holds the image, or of one that would.
        draws: Its random numbers, a single row; None for an `EvalView`.

    Returns:
        float32 (S, S, 3), with a leading V for ten crops.

    Raises:
        DecodeError: It is not an image, damaged, or not of the stored size.
    """
    shape, cutter = shape_in_loader(data, view, stored), Cutter(view, stored)
    views = (10,) if isinstance(view, EvalView) and view.name == "ten-crop" else ()
    crops = np.empty((*views, view.crop, view.crop, 3), np.float32)
    cutter.cut(cutter.decode(data, shape), cutter.cuts(draws, np.array([shape])), 0, crops)
    return crops


@without_ipp
def _scale(image: Pixels, out: Pixels) -> None:
    """Scale (H, W, 3) to the square `out`: linearly, or by areas if both sides shrink to half or less.

    Above a half, each pixel still counts without averaging, which takes five times as long.
    """
    height, width = image.shape[:2]
    side = len(out)
    halved = height >= 2 * side and width >= 2 * side
    method = cv2.INTER_AREA if halved else cv2.INTER_LINEAR
    cv2.resize(image, (side, side), dst=out, interpolation=method)
