"""From a source file's bytes to the square RGB picture that is stored, and back to JPEG.

JPEGs are decoded by libjpeg-turbo in strict mode: any warning, such as a corrupt scan or a premature
end, is an error, because a loader would later decode such a file to garbage without a word. Only stray
bytes between the header's segments, which touch no pixel, are removed and reported. Everything
else (PNG, GIF, WebP, BMP, TIFF, and CMYK JPEGs of a sampling that TurboJPEG has no name for, the one
kind whose scan is not checked) goes through Pillow. EXIF orientation and colour profiles are ignored, as in
every published pipeline.
"""

import io
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]
"""uint8 (H, W, 3), RGB."""

_PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
# The longest side that libjpeg encodes.
_LONGEST_SIDE = 65500
_START_OF_SCAN = 0xDA
# What follows 0xFF without being a segment: stuffing, fill, TEM, and the restart markers.
_NO_SEGMENT = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD8)})

# One thread per worker, and none of Intel's primitives: they choose kernels by processor, and the same
# picture would differ by a grey level from host to host.
cv2.setNumThreads(1)
cv2.ipp.setUseIPP(False)

# Pillow's own limit would overrule a larger `max_megapixels`; `_refuse_bomb` stands in for it.
Image.MAX_IMAGE_PIXELS = None


class DecodeError(Exception):
    """The bytes are not a picture that decodes completely; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded picture: `pixels` uint8 (H, W, 3) RGB, and what had to be converted, or ''."""

    pixels: Pixels
    repair: str = ""


def decode(data: bytes, max_megapixels: float) -> Decoded:
    """Decode a file's bytes completely and strictly to RGB.

    Args:
        data: the file's bytes, of any format that the module's docstring lists.
        max_megapixels: larger pictures are refused before memory is taken for them.

    Raises:
        DecodeError: not a picture, truncated, corrupt, or too large.
    """
    if not data:
        raise DecodeError("empty file")
    if data[:2] != b"\xff\xd8":
        return _decode_with_pillow(data, max_megapixels)
    try:
        return _decode_jpeg(data, max_megapixels)
    except DecodeError:
        clean = _clean_header(data)
        if clean == data:
            raise
    return Decoded(_decode_jpeg(clean, max_megapixels).pixels, "stray or odd bytes in the header removed")


def resize_shorter(pixels: Pixels, size: int) -> Pixels:
    """Scale uint8 (H, W, 3) so that the shorter side is `size`, keeping the aspect ratio.

    Area averaging when shrinking and cubic interpolation when growing, as the released source did.

    Raises:
        DecodeError: so narrow that the longer side would exceed what a JPEG can hold. Growing such a
            picture, a few hundred bytes as a file, could take gigabytes.
    """
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    target = (
        max(size, round(width * size / shorter)),
        max(size, round(height * size / shorter)),
    )
    if max(target) > _LONGEST_SIDE:
        raise DecodeError(f"{width}x{height} pixels are too narrow to scale to a shorter side of {size}")
    if shorter == size:
        return pixels
    method = cv2.INTER_AREA if shorter > size else cv2.INTER_CUBIC
    return cv2.resize(pixels, target, interpolation=method).astype(np.uint8, copy=False)


def centre_square(pixels: Pixels, size: int) -> Pixels:
    """Cut the centre (size, size, 3) out of a picture that is at least that large."""
    height, width = pixels.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def encode(pixels: Pixels, quality: int) -> bytes:
    """Encode uint8 (H, W, 3) RGB as a baseline JPEG with 4:2:0 chroma, libjpeg's default."""
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return data


def _decode_jpeg(data: bytes, max_megapixels: float) -> Decoded:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError) as error:  # KeyError: a sampling that simplejpeg has no name for
        if isinstance(error, ValueError) and "subsampling" not in str(error):
            raise DecodeError(str(error)) from error
        return _decode_with_pillow(data, max_megapixels)
    _refuse_bomb(width, height, max_megapixels)
    cmyk = space in ("CMYK", "YCCK")
    try:
        pixels = simplejpeg.decode_jpeg(data, "CMYK" if cmyk else "RGB", strict=True)
    except ValueError as error:
        raise DecodeError(str(error)) from error
    if cmyk:
        return Decoded(_cmyk_to_rgb(pixels), "CMYK converted to RGB")
    return Decoded(pixels)


def _clean_header(data: bytes) -> bytes:
    """Drop bytes between a JPEG's header segments, and name JFIF's revision 1.1 where it is another.

    libjpeg warns of both, but neither touches a pixel: what follows the header is left as it is.
    """
    header, at = bytearray(data[:2]), 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == _START_OF_SCAN:
            return bytes(header) + data[at:]
        if marker in _NO_SEGMENT:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segment = bytearray(data[at:end])
        if segment[4:9] == b"JFIF\0":
            segment[9:11] = b"\x01\x01"
        header += segment
        at = end
    return data


def _decode_with_pillow(data: bytes, max_megapixels: float) -> Decoded:
    try:
        # Pillow warns of damaged metadata, which is not used.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image,
        ):
            _refuse_bomb(image.width, image.height, max_megapixels)
            image.load()
            if image.format == "JPEG" and image.mode != "CMYK":
                raise DecodeError("a chroma sampling that cannot be decoded strictly")
            return Decoded(_pillow_to_rgb(image), f"{image.format} ({image.mode}) converted")
    except UnidentifiedImageError as error:
        raise DecodeError("not a picture in a known format") from error
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise anything for damaged files
        raise DecodeError(f"{type(error).__name__}: {error}".rstrip(": ")) from error


def _pillow_to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it to white
        grey = np.asarray(image, dtype=np.int64)
        deep = image.mode.startswith("I;16") or grey.max(initial=0) > 255
        grey8 = np.clip(grey >> 8 if deep else grey, 0, 255).astype(np.uint8)
        return np.repeat(grey8[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _refuse_bomb(width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise DecodeError(f"{width}x{height} pixels are more than {max_megapixels:g} megapixels")


def _cmyk_to_rgb(cmyk: NDArray[np.uint8]) -> Pixels:
    """Multiply each ink's light by black's: uint8 (H, W, 4) → (H, W, 3).

    JPEGs store CMYK inverted, with Adobe's marker or without: so Pillow, OpenCV and browsers read them.
    """
    light = cmyk.astype(np.uint16)
    return ((light[:, :, :3] * light[:, :, 3:] + 127) // 255).astype(np.uint8)
