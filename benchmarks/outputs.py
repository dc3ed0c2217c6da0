"""Check the tars that the contenders wrote: number, size and JPEG quality of the images."""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import simplejpeg
from candidates import QUALITY, SIZE
from feeder import read_images
from PIL import Image


@dataclass(frozen=True)
class Output:
    """Statistics of the tars of one run.

    Attributes:
        samples: Number of .jpg members.
        mean_bytes: Their mean size in bytes.
        odd_sizes: Number of images that are not SIZE×SIZE.
        odd_quality: Number of images with other quantization tables than those of QUALITY.
    """

    samples: int
    mean_bytes: float
    odd_sizes: int
    odd_quality: int


def look(folder: Path) -> Output:
    """Read every tar below `folder` and return its statistics."""
    images = read_images(folder)
    return Output(
        samples=len(images),
        mean_bytes=sum(map(len, images)) / max(len(images), 1),
        odd_sizes=sum(_size(data) != (SIZE, SIZE) for data in images),
        odd_quality=sum(_tables(data) not in _wanted_tables() for data in images),
    )


def problems(output: Output, images: int, squares: bool) -> list[str]:
    """Return the reasons why a run's output is not comparable with the others; empty if it is."""
    found = []
    if output.samples != images:
        found.append(f"{output.samples} samples instead of {images}")
    if squares and output.odd_sizes:
        found.append(f"{output.odd_sizes} images are not {SIZE}×{SIZE}")
    if squares and output.odd_quality:
        found.append(f"{output.odd_quality} images have a JPEG quality other than {QUALITY}")
    return found


def _size(data: bytes) -> tuple[int, int]:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):
        return 0, 0
    return height, width


def _tables(data: bytes) -> tuple[tuple[int, ...], ...]:
    with Image.open(io.BytesIO(data)) as image:
        tables = getattr(image, "quantization", {})
        return tuple(tuple(tables[number]) for number in sorted(tables))


@cache
def _wanted_tables() -> tuple[tuple[tuple[int, ...], ...], ...]:
    """libjpeg's quantization tables at QUALITY for a color image and for a gray one."""
    wanted = []
    for mode in ("RGB", "L"):
        buffer = io.BytesIO()
        Image.new(mode, (16, 16)).save(buffer, "JPEG", quality=QUALITY)
        wanted.append(_tables(buffer.getvalue()))
    return tuple(wanted)
