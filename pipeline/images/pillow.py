"""Decode with Pillow the images that TurboJPEG cannot read; apply EXIF orientation.

AVIF is read by Pillow itself, where it was built with it, or by the package pillow-avif-plugin; HEIC by the
package pillow-heif, which always applies the rotation that a HEIC file demands. An image that needs a package
that is not installed is refused with its name.

Of an animation the first frame is decoded. Of 16 bits per channel the upper eight are kept (of a color PPM
they are rounded). Transparent pixels are laid on white, as viewers show them: the colors that they hide may
be anything, such as a background that was erased. Color profiles are ignored.
"""

import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from pipeline.images.library_settings import pillow

Pixels = NDArray[np.uint8]
"""uint8 (H, W, 3), RGB."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks to keep beside the critical ones, whose names start with a capital: transparent color, EXIF.
_PNG_OPTIONAL = (b"tRNS", b"eXIf")
_PNG_DEPTH = 24  # offset of the byte that holds the bits per channel
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
# Format → brands of its files (ISO/IEC 23000-22, 10.2 and annex B). "mif1" and "msf1" are the brands of any
# image or sequence in a HEIF container, AVIF included, so AVIF stands first.
_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIF": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"},
}
_ORIENTATION = 0x0112  # EXIF tag
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags

# EXIF orientation → the transform that makes the stored image upright (EXIF 2.3, 4.6.4 A).
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


class DecodeError(Exception):
    """The bytes are not an image that decodes completely. The message is the reason, in one line."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image.

    Attributes:
        pixels: uint8 (H, W, 3) RGB, at full scale or at 1/2, 1/4 or 1/8 of it.
        shape: (height, width) at full scale, for the aspect ratio in `resize_shorter`.
        repair: description of what was repaired or converted, or "".
        jpeg: with `keep`, the bytes that can be stored as they are; b"" if `pixels`, then at full scale,
            must be encoded.
    """

    pixels: Pixels
    shape: tuple[int, int]
    repair: str = ""
    jpeg: bytes = b""


def refuse_bomb(width: int, height: int, max_megapixels: float) -> None:
    """Raise DecodeError if `width` x `height` pixels are more than `max_megapixels` (10^6 pixels)."""
    if width * height > max_megapixels * 1e6:
        raise DecodeError(f"{width}x{height} pixels are more than {max_megapixels:g} megapixels")


def decode_with_pillow(data: bytes, max_megapixels: float, exif_rotate: bool) -> Decoded:
    """Decode a whole file to RGB at full scale; its repair says what was converted (format and mode).

    Args:
        data: bytes of a PNG, GIF, WebP, BMP, TIFF, PPM, AVIF, HEIC, or CMYK JPEG.
        max_megapixels: limit; a larger image is refused before memory is allocated for it.
        exif_rotate: rotate and mirror the image by its EXIF orientation; damaged EXIF is ignored.

    Raises:
        DecodeError: not an image, truncated, corrupt, too large, of a pixel type without a defined white
            level, or of a format that needs a package that is not installed.
    """
    if data.startswith(_PNG_SIGNATURE):
        data = _plain_png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        refuse_bomb(*_webp_size(data), max_megapixels)
    kind = _kind_in_container(data)
    with _reasons(kind), Image.open(io.BytesIO(data), formats=_formats(kind)) as image:
        refuse_bomb(image.width, image.height, max_megapixels)
        _refuse_tiles(image, max_megapixels)
        orientation = _take_orientation(image)
        image.load()
        if image.format in ("JPEG", "MPO") and image.mode != "CMYK":
            raise DecodeError("a chroma sampling that cannot be decoded strictly")
        pixels, converted = _to_rgb(image), f"{image.format} ({image.mode}) converted"
        if _is_transparent(image):
            converted = joined(converted, "transparent pixels laid on white")
    decoded = Decoded(pixels, pixels.shape[:2], converted)
    return upright(decoded, orientation) if exif_rotate else decoded


def jpeg_orientation(data: bytes) -> int:
    """Read a JPEG's EXIF orientation, 1..8, from its header; 1 if it has none or a damaged one."""
    try:
        with _reasons(), Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return _take_orientation(image)
    except DecodeError:
        return 1


def upright(image: Decoded, orientation: int) -> Decoded:
    """Rotate or mirror an image of EXIF `orientation` 1..8 so that it is upright; its `jpeg` is dropped."""
    if orientation == 1:
        return image
    height, width = image.shape
    return Decoded(
        pixels=np.ascontiguousarray(_UPRIGHT[orientation](image.pixels)),
        shape=(width, height) if orientation >= 5 else (height, width),
        repair=joined(image.repair, f"rotated by EXIF orientation {orientation}"),
    )


def joined(*repairs: str) -> str:
    """Join descriptions of repairs; empty ones are left out."""
    return "; ".join(filter(None, repairs))


@contextmanager
def _reasons(kind: str = "") -> Iterator[None]:
    """Context manager: turn any error of Pillow into a DecodeError of one line, and silence its warnings.

    `kind` is what the file says it is, "" if Pillow is to find out.

    Pillow's plugins raise all kinds of errors on damaged files, and warn of damaged metadata, which is not
    used.
    """
    try:
        with pillow, warnings.catch_warnings(action="ignore"):
            yield
    except UnidentifiedImageError as error:
        found = f"truncated or damaged {kind} file" if kind else "not an image in a known format"
        raise DecodeError(found) from error
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(" ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")) from error


def _kind_in_container(data: bytes) -> str:
    """Return "AVIF" or "HEIF" for a file in a HEIF container, by its brands; "" for other files."""
    if data[4:8] != b"ftyp":
        return ""
    box = data[: int.from_bytes(data[:4], "big")]
    brands = {box[at : at + 4] for at in (8, *range(16, len(box), 4))}
    return next((kind for kind, known in _BRANDS.items() if brands & known), "")


def _formats(kind: str) -> tuple[str, ...]:
    """Return Pillow's names of the formats to try; the plugin that reads AVIF or HEIF is registered."""
    if not kind:
        return _FORMATS
    _register(kind)
    return (kind,)


def _register(kind: str) -> None:
    """Let Pillow read AVIF or HEIF, with a plugin where it cannot do so itself.

    Raises:
        DecodeError: the plugin's package is not installed.
    """
    package = "pillow-heif" if kind == "HEIF" else "pillow-avif-plugin"
    try:
        if kind == "HEIF":
            import pillow_heif  # type: ignore[import-not-found]  # optional

            pillow_heif.register_heif_opener(thumbnails=False)
        elif not features.check("avif"):
            import pillow_avif  # type: ignore[import-not-found]  # noqa: F401  # optional; registers itself
    except ImportError:
        raise DecodeError(
            f"reading {'HEIC' if kind == 'HEIF' else kind} needs the package {package}, which is not "
            f"installed: pip install {package}"
        ) from None


def _take_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1..8, and remove it: otherwise Pillow would rotate a TIFF on loading."""
    try:
        orientation = image.getexif().pop(_ORIENTATION, 1)
    except Exception:  # damaged EXIF, on which the parser raises all kinds of errors
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _refuse_tiles(image: Image.Image, max_megapixels: float) -> None:
    """Refuse a TIFF whose tiles exceed the limit: a tile is decoded whole, even beyond the image."""
    tags = getattr(image, "tag_v2", {})
    if _TILE_WIDTH in tags and _TILE_LENGTH in tags:
        refuse_bomb(int(tags[_TILE_WIDTH]), int(tags[_TILE_LENGTH]), max_megapixels)


def _plain_png(data: bytes) -> bytes:
    """Check every chunk's CRC, and drop the chunks that affect no pixel.

    Pillow checks the CRC of the header only, and would decompress texts and color profiles of any size. A
    transparent color of 16 bits per channel is dropped too: Pillow compares it with the upper eight bits.

    Raises:
        DecodeError: a CRC is wrong, or the file ends before its end chunk.
    """
    plain, at = bytearray(_PNG_SIGNATURE), len(_PNG_SIGNATURE)
    wide = data[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10"
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, chunk = data[at + 4 : at + 8], data[at:end]
        if end > len(data):
            break
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise DecodeError(f"corrupt PNG: wrong checksum of a chunk {ascii(kind)[2:-1]}")
        if kind[:1].isupper() or (kind in _PNG_OPTIONAL and not (wide and kind == b"tRNS")):
            plain += chunk
        if kind == b"IEND":
            return bytes(plain)
        at = end
    raise DecodeError("premature end of PNG file")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read (width, height) from a WebP's first chunk, since Pillow allocates the canvas on opening it."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        sides = int.from_bytes(data[21:25], "little")
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _to_rgb(image: Image.Image) -> Pixels:
    """Convert a loaded image of any mode to uint8 (H, W, 3).

    Raises:
        DecodeError: signed, 32-bit or float pixels.
    """
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if wide:  # 16-bit gray: Pillow's own conversion would clip it to white
        gray = np.asarray(image.copy())  # only the copy has the real size of a rotated TIFF
        return np.repeat((gray >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise DecodeError(
            f"{image.format} ({image.mode}): signed or 32-bit pixels have no defined white level"
        )
    if _is_transparent(image):
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel of a loaded image is not opaque."""
    return image.has_transparency_data and int(np.asarray(image.convert("RGBA"))[:, :, 3].min()) < 255
