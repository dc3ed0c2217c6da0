"""Decode stored images and cut, flip and normalize them, on the CPU; one cutter for each thread.

Shapes: B batch, V views (10 for ten crops, else absent), S crop; H, W of an image.
"""

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.dataset.manifest import ImageFormat
from pipeline.errors import UsageError
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
from pipeline.loader.views import EvalView, TrainView, check_view, five_corners
from pipeline.seeds import Purpose, random_generator

Encoded = bytes | memoryview
TransformFunction = Callable[[Pixels, np.random.Generator], Pixels]


class TransformError(Exception):
    """A user's transform failed, or the view cannot cut what it returned. The message is the reason."""


@dataclass(frozen=True)
class Transform:
    """A user's function that changes stored images before a view cuts them.

    Attributes:
        function: Called with an image, uint8 (H, W, 3), and a generator; returns an image of any size.
        seed: Seed of the generators.
        begins: Position in the split of each shard's first sample.
    """

    function: TransformFunction
    seed: int
    begins: Integers

    @property
    def name(self) -> str:
        """Name of the function."""
        return getattr(self.function, "__qualname__", type(self.function).__name__)

    def __call__(self, pixels: Pixels, epoch: int, shard: int, sample: int) -> Pixels:
        """Return the changed image; its random numbers depend on seed, epoch and position in the split alone.

        Raises:
            TransformError: The function failed, or returned something else than uint8 (H, W, 3).
        """
        position = int(self.begins[shard]) + sample
        generator = random_generator(self.seed, Purpose.TRANSFORM, epoch, position)
        try:
            found = self.function(pixels, generator)
        except BaseException as error:  # also SystemExit: a thread cannot end the process
            frame = traceback.extract_tb(error.__traceback__)[:2][-1]  # the line of the function
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise TransformError(f"{text} ({frame.filename}, line {frame.lineno})") from error
        right = isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.shape[2:] == (3,)
        if not right or not found.size:
            kind = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            raise TransformError(f"it returned {kind} instead of an array, uint8 (H, W, 3)")
        return np.ascontiguousarray(found)


class Cuts(NamedTuple):
    """What is cut from some images; a list element for each.

    Attributes:
        windows: y, x, height and width of the window.
        flips: Whether it is mirrored.
        shifts: (R, G, B) that is subtracted, repeated for a row of the crop: float32 (3 · S,), or None for 0.
    """

    windows: list[list[int]]
    flips: list[bool]
    shifts: Sequence[NDArray[np.float32] | None]


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
        self._divisor_row = np.tile(self._divisors, view.crop)

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

    def cut_changed(self, pixels: Pixels, draws: Draws | None, out: NDArray[Any]) -> None:
        """Cut an image that a transform returned as the view cuts stored images of its size.

        Args:
            pixels: uint8 (H, W, 3).
            draws: Its random numbers, a single row; None for an `EvalView`.
            out: The row of the batch, as for `cut`.

        Raises:
            TransformError: The crop does not fit into it.
        """
        height, width = pixels.shape[:2]
        try:
            check_view(self._view, self._stored.size if self._scales_first else min(height, width))
            if self._scales_first:
                pixels = resize_shorter(pixels, self._stored.size)
        except (UsageError, DecodeError):
            raise TransformError(
                f"it returned {width}x{height} pixels, which do not fit a crop of {self._view.crop}"
            ) from None
        height, width = pixels.shape[:2]
        stored = replace(self._stored, size=min(height, width))
        self.cut(pixels, _cuts(self._view, stored, draws, np.array([(height, width)])), 0, out)

    def cuts(self, draws: Draws | None, shapes: Integers) -> Cuts:
        """Compute what is cut from images of these shapes.

        Args:
            draws: Random numbers, a row for each image; None for an `EvalView`.
            shapes: int64 (B, 2), height and width of each image.
        """
        return _cuts(self._view, self._stored, draws, shapes)

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

    def _normalize(self, crop: Pixels, shift: NDArray[np.float32] | None, out: NDArray[Any]) -> None:
        """Write (crop − shift) ÷ divisors to `out`, uint8 (S, S, 3) to (S, S, 3) or (3, S, S).

        An interleaved crop is treated as rows of 3 · S values: three colors in turns would take ten times as
        long.
        """
        side, interleaved = len(crop), out.shape == crop.shape
        targets = [out.reshape(side, -1)] if interleaved else [*out]
        divisors = [self._divisor_row] if interleaved else self._divisors
        if out.dtype == np.float16:
            self._subtract_half(crop, shift, out)
        else:
            if not interleaved:
                cv2.split(crop, self._planes)
            sources = [crop.reshape(side, -1)] if interleaved else self._planes
            for target, source in zip(targets, sources, strict=True):
                target[...] = source
            if shift is not None:
                for target, less in zip(targets, [shift] if interleaved else shift[:3], strict=True):
                    np.subtract(target, less, out=target)
        if self._divides:
            for target, divisor in zip(targets, divisors, strict=True):
                np.divide(target, divisor, out=target, casting="same_kind")

    def _subtract_half(self, crop: Pixels, shift: NDArray[np.float32] | None, out: NDArray[Any]) -> None:
        """Write crop − shift to `out`, float16. OpenCV does so in a tenth of NumPy's time."""
        subtract: Any = cv2.subtract  # whose annotations know no numbers
        red, green, blue = [0.0] * 3 if shift is None else shift[:3].tolist()
        if out.shape == crop.shape:
            subtract(crop, (red, green, blue, 0.0), dst=out, dtype=cv2.CV_16F)
        else:
            cv2.split(crop, self._planes)
            for plane, color, target in zip(self._planes, (red, green, blue), out, strict=True):
                subtract(plane, color, dst=target, dtype=cv2.CV_16F)


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


def _cuts(view: TrainView | EvalView, stored: ImageFormat, draws: Draws | None, shapes: Integers) -> Cuts:
    found = windows(view, stored, draws, shapes).tolist()
    if draws is None or isinstance(view, EvalView):
        return Cuts(found, [False] * len(shapes), [None] * len(shapes))
    return Cuts(found, draws.flip.tolist(), list(np.tile(shifts(view, draws), (1, view.crop))))


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
