"""From a source file's bytes to the RGB image that is stored, and back to JPEG.

JPEGs are decoded by libjpeg-turbo in strict mode: any warning, such as a corrupt scan or a premature
end, is an error, because a loader would later decode such a file to garbage without a word. Only stray
bytes between the header's segments, which touch no pixel, are removed and reported. Everything
else (PNG, GIF, WebP, BMP, TIFF, PPM, and CMYK JPEGs of a sampling that TurboJPEG has no name for, the one
kind whose scan is not checked) goes through Pillow. Color profiles are ignored, as in every published
pipeline, and so is EXIF orientation unless asked for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.images.pillow import (
    DecodeError,
    Pixels,
    decode_with_pillow,
    jpeg_orientation,
    refuse_bomb,
    upright,
)

__all__ = ["DecodeError", "Decoded", "Pixels", "decode", "encode", "resize_shorter", "resize_square"]

# The longest side that libjpeg encodes.
_LONGEST_SIDE = 65500
# libjpeg's own progressive script has 10 scans. Each is a pass over the whole image (0.3 ms a megapixel),
# but may hold a few bytes only, so that a file of 4 MB could keep a worker busy for an hour.
_MOST_SCANS = 100

_START_OF_SCAN, _END = 0xDA, 0xD9
# A marker that starts a segment: not stuffing, fill, TEM or a restart.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Sequential and progressive frames in Huffman coding: what every reader knows.
_COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_PROGRESSIVE_FRAMES = frozenset({0xC2, 0xCA})

# One thread per worker, and none of Intel's primitives: they choose kernels by processor, and the same
# image would differ by a gray level from host to host.
cv2.setNumThreads(1)
cv2.ipp.setUseIPP(False)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image.

    Attributes:
        pixels: uint8 (H, W, 3) RGB, at full scale or at 1/2, 1/4 or 1/8 of it.
        shape: (height, width) at full scale, from which `resize_shorter` takes the aspect ratio.
        repair: what had to be converted, or ''.
        jpeg: with `keep`, bytes that can be stored as they are; None where `pixels`, then at full scale,
            must be encoded.
    """

    pixels: Pixels
    shape: tuple[int, int]
    repair: str = ""
    jpeg: bytes | None = None


def decode(
    data: bytes,
    max_megapixels: float,
    *,
    size: int | None = None,
    exif_rotate: bool = False,
    keep: bool = False,
) -> Decoded:
    """Decode a file's bytes completely and strictly to RGB.

    Args:
        data: the file's bytes, of any format that the module's docstring lists.
        max_megapixels: larger images are refused before memory is taken for them.
        size: shorter side that the image will be scaled to; a JPEG more than twice as large is decoded
            at 1/2, 1/4 or 1/8, the smallest that has no side below its target.
        exif_rotate: turn and mirror the image as its EXIF orientation asks; damaged EXIF asks nothing.
        keep: return the bytes of color JPEGs that need no change, to be stored untouched.

    Raises:
        DecodeError: not an image, truncated, corrupt, or too large; with `keep`, also what has to be
            encoded and is longer than a JPEG can be.
    """
    if not data:
        raise DecodeError("empty file")
    if data[:2] == b"\xff\xd8":
        found = _decode_mended(data, max_megapixels, size, exif_rotate, keep)
    else:
        found = _decode_other(data, max_megapixels, exif_rotate)
    if keep and not found.jpeg and max(found.shape) > _LONGEST_SIDE:
        raise DecodeError("{1}x{0} pixels are more than a JPEG can hold".format(*found.shape))
    return found


def resize_shorter(pixels: Pixels, size: int, shape: tuple[int, int] | None = None) -> Pixels:
    """Scale uint8 (H, W, 3) so that the shorter side is `size`, keeping the aspect ratio.

    Area averaging when shrinking and cubic interpolation when growing, as the released source did.

    Args:
        pixels: the image.
        size: its future shorter side, pixels.
        shape: (height, width) that the aspect ratio is taken from where `pixels` were decoded at a
            smaller scale, which rounds: `Decoded.shape`.

    Raises:
        DecodeError: so narrow that the longer side would exceed what a JPEG can hold. Growing such a
            image, a few hundred bytes as a file, could take gigabytes.
    """
    height, width = pixels.shape[:2]
    rows, columns = _target(shape or (height, width), size)
    return pixels if (height, width) == (rows, columns) else _resize(pixels, rows, columns)


def resize_square(pixels: Pixels, size: int) -> Pixels:
    """Scale the center square of uint8 (H, W, 3) to (size, size, 3).

    It is cut out before it is scaled: what will not be kept need not be scaled, and both axes get the same
    scale, which a longer side rounded to whole pixels would not have. Filters are those of `resize_shorter`.
    """
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    # OpenCV reads rows that lie close together a quarter faster.
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    return square if side == size else _resize(square, size, size)


def encode(pixels: Pixels, quality: int) -> bytes:
    """Encode uint8 (H, W, 3) RGB as a baseline JPEG with 4:2:0 chroma, libjpeg's default."""
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return data


def _resize(pixels: Pixels, rows: int, columns: int) -> Pixels:
    method = cv2.INTER_AREA if min(pixels.shape[:2]) > min(rows, columns) else cv2.INTER_CUBIC
    return cv2.resize(pixels, (columns, rows), interpolation=method).astype(np.uint8, copy=False)


def _decode_other(data: bytes, max_megapixels: float, exif_rotate: bool) -> Decoded:
    pixels, repair, orientation = decode_with_pillow(data, max_megapixels, exif_rotate)
    return _turned(pixels, pixels.shape[:2], repair, orientation)


def _decode_mended(
    data: bytes, max_megapixels: float, size: int | None, exif_rotate: bool, keep: bool
) -> Decoded:
    try:
        return _decode_jpeg(data, max_megapixels, size, exif_rotate, keep)
    except DecodeError:
        clean = _clean_header(data)
        if clean == data:
            raise
    found = _decode_jpeg(clean, max_megapixels, size, exif_rotate, keep)
    repair = _joined("stray or odd bytes in the header removed", found.repair)
    return Decoded(found.pixels, found.shape, repair, found.jpeg)


def _decode_jpeg(
    data: bytes, max_megapixels: float, size: int | None, exif_rotate: bool, keep: bool
) -> Decoded:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError) as error:  # KeyError: a sampling that simplejpeg has no name for
        if isinstance(error, ValueError) and "subsampling" not in str(error):
            raise DecodeError(str(error)) from error
        _frame(data)
        return _decode_other(data, max_megapixels, exif_rotate)
    refuse_bomb(width, height, max_megapixels)
    frame = _frame(data)
    orientation = jpeg_orientation(data) if exif_rotate else 1
    change = _change(space, frame, keep)
    untouched = keep and not change and orientation == 1
    shape = height, width
    # Asked for a smaller lossless JPEG, simplejpeg 1.9 writes beyond its memory.
    if size is None or frame not in _COMMON_FRAMES or (keep and not untouched):
        scaled = shape
    else:
        scaled = _scaled(shape, size)
    cmyk = space in ("CMYK", "YCCK")
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "CMYK" if cmyk else "RGB",
            min_height=scaled[0],
            min_width=scaled[1],
            min_factor=2,
            strict=True,
        )
    except ValueError as error:
        raise DecodeError(str(error)) from error
    found = _turned(_cmyk_to_rgb(pixels) if cmyk else pixels, shape, change, orientation)
    return Decoded(found.pixels, found.shape, found.repair, data) if untouched else found


def _change(space: str, frame: int, keep: bool) -> str:
    """What has to be converted of a JPEG, or ''. What is encoded anyhow needs no word about its coding."""
    if space in ("CMYK", "YCCK"):
        return "CMYK converted to RGB"
    if keep and space == "Gray":
        return "gray JPEG converted to RGB"
    if keep and frame not in _COMMON_FRAMES:
        return "arithmetic-coded or lossless JPEG converted"
    return ""


def _turned(pixels: Pixels, shape: tuple[int, int], repair: str, orientation: int) -> Decoded:
    if orientation == 1:
        return Decoded(pixels, shape, repair)
    shape = (shape[1], shape[0]) if orientation >= 5 else shape
    repair = _joined(repair, f"rotated by EXIF orientation {orientation}")
    return Decoded(upright(pixels, orientation), shape, repair)


def _joined(*repairs: str) -> str:
    return "; ".join(filter(None, repairs))


def _target(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(rows, columns) of an image of (height, width) whose shorter side is scaled to `size`."""
    height, width = shape
    shorter = min(shape)
    rows, columns = max(size, round(height * size / shorter)), max(size, round(width * size / shorter))
    if max(rows, columns) > _LONGEST_SIDE:
        raise DecodeError(f"{width}x{height} pixels are too narrow to scale to a shorter side of {size}")
    return rows, columns


def _scaled(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) at the smallest of the scales 1/1, 1/2, 1/4, 1/8 that is no side below the target.

    libjpeg knows more scales, but only these have fast transforms. It rounds up.
    """
    if min(shape) <= 2 * size:
        return shape
    rows, columns = _target(shape, size)
    for factor in (8, 4):
        height, width = (-(-side // factor) for side in shape)
        if height >= rows and width >= columns:
            return height, width
    return -(-shape[0] // 2), -(-shape[1] // 2)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of a JPEG's segments up to the end mark, as libjpeg finds them.

    `end` excludes a scan's entropy-coded data, which holds no such marker.
    """
    at = 2
    while found := _MARKER.search(data, at):
        start = found.start()
        if data[start + 1] == _END:
            return
        at = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        yield data[start + 1], start, at


def _frame(data: bytes) -> int:
    """Return the marker of a JPEG's frame, which names its coding.

    Raises:
        DecodeError: more scans than any encoder writes.
    """
    frame, components, scans = 0, b"", 0
    for marker, start, _ in _segments(data):
        if marker in _FRAMES:
            frame, components = marker, data[start + 9 : start + 10]
        elif marker == _START_OF_SCAN:
            scans += 1
            if frame not in _PROGRESSIVE_FRAMES and data[start + 4 : start + 5] == components:
                break  # a scan of every component is the last one that libjpeg decodes
    if scans > _MOST_SCANS:
        raise DecodeError(f"{scans} scans in a JPEG are more than {_MOST_SCANS}")
    return frame


def _clean_header(data: bytes) -> bytes:
    """Drop bytes between a JPEG's header segments, and name JFIF's revision 1.1 where it is another.

    libjpeg warns of both, but neither touches a pixel: what follows the header is left as it is.
    """
    header = bytearray(data[:2])
    for marker, start, end in _segments(data):
        if marker == _START_OF_SCAN:
            return bytes(header) + data[start:]
        segment = bytearray(data[start:end])
        if segment[4:9] == b"JFIF\0":
            segment[9:11] = b"\x01\x01"
        header += segment
    return data


def _cmyk_to_rgb(cmyk: NDArray[np.uint8]) -> Pixels:
    """Multiply each ink's light by black's: uint8 (H, W, 4) → (H, W, 3).

    JPEGs store CMYK inverted, with Adobe's marker or without: so Pillow, OpenCV and browsers read them.
    """
    light = cmyk.astype(np.uint16)
    return ((light[:, :, :3] * light[:, :, 3:] + 127) // 255).astype(np.uint8)
