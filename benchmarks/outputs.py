"""Look at what the contenders wrote: equal numbers of images, of equal size and quality."""

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
    """What lies in the tars of one run.

    Attributes:
        samples: .jpg members.
        mean_bytes: of these.
        odd_sizes: how many are not squares of the size asked for.
        odd_quality: how many tars begin with an image of other quantization tables than the quality's.
    """

    samples: int
    mean_bytes: float
    odd_sizes: int
    odd_quality: int


def look(folder: Path) -> Output:
    """Read every tar below `folder`."""
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
    """What makes a run's output no fair comparison."""
    found = []
    if output.samples != images:
        found.append(f"{output.samples} samples of {images}")
    if squares and output.odd_sizes:
        found.append(f"{output.odd_sizes} images are not {SIZE}×{SIZE}")
    if squares and output.odd_quality:
        found.append(f"{output.odd_quality} tars have another JPEG quality than {QUALITY}")
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
    """libjpeg's tables of the quality, of a color image and of a gray one."""
    wanted = []
    for mode in ("RGB", "L"):
        buffer = io.BytesIO()
        Image.new(mode, (16, 16)).save(buffer, "JPEG", quality=QUALITY)
        wanted.append(_tables(buffer.getvalue()))
    return tuple(wanted)
