"""Decode a source file's bytes to RGB, resize, and encode as JPEG.

JPEGs are decoded by libjpeg-turbo in strict mode: any warning, such as a corrupt scan or a premature end, is
an error, because a loader would later decode such a file to garbage silently. Only stray bytes between the
header's segments, which affect no pixel, are removed and reported as a repair. Pillow decodes everything
else: PNG, GIF, WebP, BMP, TIFF, PPM, AVIF, HEIC, and CMYK JPEGs with a chroma subsampling that TurboJPEG has
no name for, the one kind whose scan is not checked. Color profiles are ignored, as in every published
pipeline; EXIF orientation is ignored unless `exif_rotate` is set.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.images.library_settings import opencv
from pipeline.images.pillow import (
    Decoded,
    DecodeError,
    Pixels,
    decode_with_pillow,
    joined,
    jpeg_orientation,
    refuse_bomb,
    upright,
)

__all__ = [
    "DecodeError",
    "Decoded",
    "Pixels",
    "convert",
    "decode",
    "encode",
    "resize_shorter",
    "resize_square",
    "shape_of",
]

# Longest side that libjpeg encodes, pixels (its JPEG_MAX_DIMENSION).
_LONGEST_SIDE = 65500
# libjpeg's own progressive script has 10 scans. Decoding a scan passes over the whole image (0.3 ms per
# megapixel), but a scan may consist of a few bytes, so a file of 4 MB could keep a worker busy for an hour.
_MOST_SCANS = 100

_START_OF_SCAN, _END = 0xDA, 0xD9
# A marker that starts a segment: not byte stuffing, a fill byte, TEM or a restart marker.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Sequential and progressive frames with Huffman coding, which every decoder supports.
_COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_PROGRESSIVE_FRAMES = frozenset({0xC2, 0xCA})


def convert(
    data: bytes,
    size: int,
    *,
    mode: str,
    quality: int,
    max_megapixels: float,
    exif_rotate: bool = False,
) -> Decoded:
    """Decode, scale and encode a file.

    Args:
        data: bytes of the file.
        size: shorter side of the image, pixels.
        mode: "square" (the center square is stored), "aspect" (nothing is cropped) or "original" (intact
            color JPEGs are stored as they are, other images at full scale).
        quality: JPEG quality, 1..100.
        max_megapixels: limit; see `decode`.
        exif_rotate: whether to rotate the image; see `decode`.

    Returns:
        An image whose `jpeg` is to be stored; its `pixels` are those before encoding, with the shorter side
        `size`, to which the loader scales also the images of "original".

    Raises:
        DecodeError: see `decode` and `resize_shorter`.
    """
    keep = mode == "original"
    image = decode(data, max_megapixels, size=size, exif_rotate=exif_rotate, keep=keep)
    if mode == "square":
        pixels = resize_square(image.pixels, size)
    else:
        pixels = resize_shorter(image.pixels, size, image.shape)
    jpeg = image.jpeg or encode(image.pixels if keep else pixels, quality)
    return replace(image, pixels=pixels, jpeg=jpeg)


def decode(
    data: bytes,
    max_megapixels: float,
    *,
    size: int | None = None,
    exif_rotate: bool = False,
    keep: bool = False,
) -> Decoded:
    """Decode a whole file to RGB, strictly: a warning of the decoder is an error.

    Args:
        data: bytes of a file in any format that the module's docstring lists.
        max_megapixels: limit; a larger image is refused before memory is allocated for it.
        size: shorter side in pixels that the image will be scaled to, or None. A JPEG more than twice as
            large is decoded at 1/2, 1/4 or 1/8, the smallest scale at which neither side is below its target.
        exif_rotate: rotate and mirror the image by its EXIF orientation; damaged EXIF is ignored.
        keep: also return the bytes of color JPEGs that need no change, to be stored as they are.

    Raises:
        DecodeError: not an image, truncated, corrupt, or too large; with `keep`, also an image that must be
            encoded and has a side over 65500 pixels.
    """
    if not data:
        raise DecodeError("empty file")
    if data[:2] != b"\xff\xd8":
        decoded = decode_with_pillow(data, max_megapixels, exif_rotate)
    else:
        try:
            decoded = _decode_jpeg(data, max_megapixels, size, exif_rotate, keep)
        except DecodeError:
            clean = _clean_header(data)
            if clean == data:
                raise
            decoded = _decode_jpeg(clean, max_megapixels, size, exif_rotate, keep)
            repair = joined("stray or odd bytes in the header removed", decoded.repair)
            decoded = replace(decoded, repair=repair)
    if keep and not decoded.jpeg and max(decoded.shape) > _LONGEST_SIDE:
        raise DecodeError("{1}x{0} pixels are more than a JPEG can hold".format(*decoded.shape))
    return decoded


def shape_of(data: bytes | memoryview) -> tuple[int, int]:
    """Return height and width of an image, of a JPEG from its header alone.

    Raises:
        DecodeError: not an image, or damaged.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # no JPEG
        return decode(bytes(data), math.inf).shape
    return height, width


def resize_shorter(pixels: Pixels, size: int, shape: tuple[int, int] | None = None) -> Pixels:
    """Scale uint8 (H, W, 3) so that the shorter side is `size`, keeping the aspect ratio.

    Shrinks by area averaging and enlarges by cubic interpolation, as the paper's released source did.

    Args:
        pixels: uint8 (H, W, 3) image.
        size: shorter side of the result, pixels.
        shape: (height, width) to take the aspect ratio from, if not that of `pixels`: `Decoded.shape`, since
            decoding at a smaller scale rounds the sides.

    Returns:
        uint8 (H', W', 3) with min(H', W') = `size`.

    Raises:
        DecodeError: the image is so narrow that its longer side would exceed 65500 pixels, the most that a
            JPEG can hold. Enlarging such an image, a file of a few hundred bytes, could need gigabytes.
    """
    height, width = pixels.shape[:2]
    rows, columns = _target(shape or (height, width), size)
    return pixels if (height, width) == (rows, columns) else _resize(pixels, rows, columns)


def resize_square(pixels: Pixels, size: int) -> Pixels:
    """Scale the center square of uint8 (H, W, 3) to (size, size, 3).

    The square is cropped before it is scaled. This saves work, and both axes get exactly the same scale,
    which they would not if the longer side were rounded to whole pixels. The filters are those of
    `resize_shorter`.
    """
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    # OpenCV is a quarter faster on contiguous rows.
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    return square if side == size else _resize(square, size, size)


def encode(pixels: Pixels, quality: int) -> bytes:
    """Encode uint8 (H, W, 3) RGB as a baseline JPEG of quality 1..100, 4:2:0 chroma (libjpeg's default)."""
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return data


@opencv
def _resize(pixels: Pixels, rows: int, columns: int) -> Pixels:
    method = cv2.INTER_AREA if min(pixels.shape[:2]) > min(rows, columns) else cv2.INTER_CUBIC
    return cv2.resize(pixels, (columns, rows), interpolation=method).astype(np.uint8, copy=False)


def _decode_jpeg(
    data: bytes, max_megapixels: float, size: int | None, exif_rotate: bool, keep: bool
) -> Decoded:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError) as error:  # KeyError: a subsampling that simplejpeg has no name for
        if isinstance(error, ValueError) and "subsampling" not in str(error):
            raise DecodeError(str(error)) from error
        _frame(data)
        return decode_with_pillow(data, max_megapixels, exif_rotate)
    refuse_bomb(width, height, max_megapixels)
    frame = _frame(data)
    orientation = jpeg_orientation(data) if exif_rotate else 1
    change = _change(space, frame, keep)
    untouched = keep and not change and orientation == 1
    shape = scaled = height, width
    # simplejpeg 1.9 writes out of bounds when it decodes a lossless JPEG at a smaller scale.
    if size is not None and frame in _COMMON_FRAMES and (untouched or not keep):
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
    pixels = _cmyk_to_rgb(pixels) if cmyk else pixels
    return upright(Decoded(pixels, shape, change, data if untouched else b""), orientation)


def _change(space: str, frame: int, keep: bool) -> str:
    """Describe what must be converted in a JPEG, or "". Without `keep`, its coding does not matter."""
    if space in ("CMYK", "YCCK"):
        return "CMYK converted to RGB"
    if keep and space == "Gray":
        return "gray JPEG converted to RGB"
    if keep and frame not in _COMMON_FRAMES:
        return "arithmetic-coded or lossless JPEG converted"
    return ""


def _target(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Return (rows, columns) of an image of (height, width) after its shorter side is scaled to `size`."""
    height, width = shape
    shorter = min(shape)
    rows, columns = max(size, round(height * size / shorter)), max(size, round(width * size / shorter))
    if max(rows, columns) > _LONGEST_SIDE:
        raise DecodeError(f"{width}x{height} pixels are too narrow to scale to a shorter side of {size}")
    return rows, columns


def _scaled(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Return (height, width) at the smallest scale of 1, 1/2, 1/4, 1/8 at which no side is below its target.

    libjpeg has more scales, but only these have fast transforms. It rounds the sides up.
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
    """Yield (marker, start, end) of a JPEG's segments up to its end marker, as libjpeg finds them.

    `end` is an offset that excludes a scan's entropy-coded data, which contains no such marker.
    """
    at = 2
    while match := _MARKER.search(data, at):
        start = match.start()
        if data[start + 1] == _END:
            return
        at = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        yield data[start + 1], start, at


def _frame(data: bytes) -> int:
    """Return the marker of a JPEG's frame header, which says how it is coded; 0 if it has none.

    Raises:
        DecodeError: the JPEG has more than 100 scans.
    """
    frame, components, scans = 0, b"", 0
    for marker, start, _ in _segments(data):
        if marker in _FRAMES:
            frame, components = marker, data[start + 9 : start + 10]
        elif marker == _START_OF_SCAN:
            scans += 1
            if frame not in _PROGRESSIVE_FRAMES and data[start + 4 : start + 5] == components:
                break  # libjpeg decodes nothing after a scan of all components
    if scans > _MOST_SCANS:
        raise DecodeError(f"{scans} scans in a JPEG are more than {_MOST_SCANS}")
    return frame


def _clean_header(data: bytes) -> bytes:
    """Remove bytes between a JPEG's header segments, and set the JFIF version to 1.1 where it is another.

    libjpeg warns of both, but neither affects a pixel. Everything from the first scan on is left as it is.
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
    """Convert inverted CMYK, uint8 (H, W, 4), to RGB (H, W, 3): multiply each channel by the black channel.

    JPEGs store CMYK inverted, with Adobe's marker or without; Pillow, OpenCV and browsers read them so.
    """
    light = cmyk.astype(np.uint16)
    return ((light[:, :, :3] * light[:, :, 3:] + 127) // 255).astype(np.uint8)
