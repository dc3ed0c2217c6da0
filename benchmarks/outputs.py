"""Check the tars that the contenders wrote: number, size and JPEG quality of the images."""

import io
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import simplejpeg
from candidates import QUALITY, SIZE
from PIL import Image


@dataclass(frozen=True)
class Output:
    """Statistics of the tars of one run.

    Attributes:
        samples: Number of .jpg members.
        mean_bytes: Their mean size in bytes.
        odd_sizes: Number of images that are not SIZE×SIZE.
        odd_quality: Number of tars whose first image has other quantization tables than those of QUALITY.
    """

    samples: int
    mean_bytes: float
    odd_sizes: int
    odd_quality: int


def look(folder: Path) -> Output:
    """Read every tar below `folder` and return its statistics."""
    sizes: list[int] = []
    odd_sizes = odd_quality = 0
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            first = True
            for member in tar:
                file = tar.extractfile(member)
                if not member.name.endswith(".jpg") or file is None:
                    continue
                data = file.read()
                sizes.append(len(data))
                odd_sizes += _size(data) != (SIZE, SIZE)
                odd_quality += first and _tables(data) not in _wanted_tables()
                first = False
    return Output(len(sizes), sum(sizes) / max(len(sizes), 1), odd_sizes, odd_quality)


def problems(output: Output, images: int, squares: bool) -> list[str]:
    """Return the reasons why a run's output is not comparable with the others; empty if it is."""
    found = []
    if output.samples != images:
        found.append(f"{output.samples} samples instead of {images}")
    if squares and output.odd_sizes:
        found.append(f"{output.odd_sizes} images are not {SIZE}×{SIZE}")
    if squares and output.odd_quality:
        found.append(f"{output.odd_quality} tars have a JPEG quality other than {QUALITY}")
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
