"""Tars that another tool wrote: find their labels, and measure their images' format and pixel statistics."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.dataset.manifest import ImageFormat
from pipeline.errors import UsageError
from pipeline.executors.base import Executor, OnProgress
from pipeline.executors.local import count_image
from pipeline.images.codec import DecodeError, Pixels, decode, resize_shorter
from pipeline.images.statistics import Moments
from pipeline.sources.base import Container, Sample
from pipeline.sources.listers.webdataset import LABEL_FIELDS, SamplePart, read_tar
from pipeline.storage.atomic import sha256_of
from pipeline.storage.base import Store

BLOCK = 512
"""Bytes of a tar block."""
REMEDY = "run `alexnet-prep shard FOLDER OUT --layout webdataset` instead"
"""Ends the messages about tars that cannot be read in place."""
_NUMBER = re.compile(rb"\s*\+?([0-9]+)[\s\0]*")
_FIELD = re.compile(rb'"(?:%s)"\s*:\s*"?\s*\+?([0-9]+)' % "|".join(LABEL_FIELDS).encode())


class LabelSpan(NamedTuple):
    """Byte range of a tar that ends with the last digit of a label.

    Attributes:
        offset: Start of the range: the tar block (a multiple of 512) in which the digits start.
        size: Size of the range in bytes.
        value: The label.
    """

    offset: int
    size: int
    value: int


def locate(store: Store, container: Container, images: Iterable[int]) -> list[LabelSpan]:
    """Find the label of each image in a tar.

    Args:
        store: Folder of the tar.
        container: The tar.
        images: Byte offset of each image in the tar.

    Returns:
        One label span for each image, in the order of `images`.

    Raises:
        UsageError: A damaged tar, or a label that is not an integer.
    """
    url = store.url_of(container.path)
    labels: dict[int, SamplePart] = {}
    for sample in read_tar(store, container):
        image, label = sample.get("image"), sample.get("cls") or sample.get("json")
        if image and label:
            labels[image.member.offset] = label
    return [_span(url, labels[offset]) for offset in images]


def _span(url: str, label: SamplePart) -> LabelSpan:
    data = label.content
    found = _NUMBER.fullmatch(data) if label.kind == "cls" else _digits_in_json(data)
    if found is None:
        text = ascii(data[:40].decode("utf-8", "replace"))
        raise UsageError(
            f"{url}: {label.member.name} has no integer as its label ({text}), and only integers are read in "
            f"place; {REMEDY}"
        )
    start, end = (label.member.offset + at for at in found.span(1))
    block = start // BLOCK * BLOCK
    return LabelSpan(block, end - block, int(found[1]))


def _digits_in_json(data: bytes) -> re.Match[bytes] | None:
    """Match the digits of the label in a sample's JSON, or return None.

    Nested objects may have fields of the same names, so each match is tried: the digits that set the label
    are those whose change changes the parsed label.
    """
    label = _json_label(data)
    for match in _FIELD.finditer(data):
        other = b"1" if match[1] != b"1" else b"2"
        changed = data[: match.start(1)] + other + data[match.end(1) :]
        if label == int(match[1]) != _json_label(changed):
            return match
    return None


def _json_label(data: bytes) -> int | None:
    """Return the integer in the first label field of a sample's JSON, where it may be a string; else None."""
    fields = msgspec.json.decode(data)
    given = (fields.get(name) for name in LABEL_FIELDS)
    text = str(next((value for value in given if value is not None), ""))
    return int(text) if re.fullmatch(r"\s*\+?[0-9]+\s*", text) else None


Progress = Callable[[int, int], None]
"""Called with (images handled, images in all)."""

# Images of each tar that are tried until one decodes, whose shape then suggests the formats.
_FIRST_LOOK = 100


class ExternalTar(NamedTuple):
    """A tar that another tool wrote; each is a task.

    Attributes:
        root: Absolute path of the dataset's folder.
        name: Path of the tar below `root`.
        split: "train", "val" or "test".
        samples: Samples of the tar, in the order of their bytes.
    """

    root: Path
    name: str
    split: str
    samples: tuple[Sample, ...]


class Measured(NamedTuple):
    """Measurements of one tar.

    Attributes:
        moments: Moments of its images if it is training data; else empty.
        sha256: Checksum of the tar (hex).
        bytes: Size of the tar in bytes.
        skipped: Index of a sample in `ExternalTar.samples` → why a loader cannot load the image.
    """

    moments: Moments
    sha256: str
    bytes: int
    skipped: dict[int, str]


def measure(
    executor: Executor, tars: list[ExternalTar], size: int, max_megapixels: float, progress: Progress | None
) -> tuple[ImageFormat, dict[str, Measured]]:
    """Decode every image, strictly, and find the strictest image format that all of them have.

    Formats are tried from the strictest on. The first image that does not have a format ends its pass, mostly
    early.

    Args:
        executor: Executor of the tasks, one for each tar.
        tars: Tars to read.
        size: Shorter side in pixels to which images are scaled before measuring, if their shorter sides
            differ.
        max_megapixels: Images with more megapixels are left out.
        progress: Called with (images done, images in all).

    Returns:
        The format, and name of each tar → its measurements.

    Raises:
        RunError: A worker died.
    """
    total = sum(len(tar.samples) for tar in tars)

    def on_progress(done: int) -> None:
        if progress:
            progress(min(done, total), total)

    *likely, any_size = _formats(tars, size, max_megapixels)
    for image in likely:
        if found := _try(executor, tars, image, max_megapixels, on_progress):
            break
    else:
        image, found = any_size, _try(executor, tars, any_size, max_megapixels, on_progress)
    on_progress(total)
    return image, found


def _try(
    executor: Executor,
    tars: list[ExternalTar],
    image: ImageFormat,
    max_megapixels: float,
    on_progress: OnProgress,
) -> dict[str, Measured]:
    """Return name of each tar → its measurements; nothing if an image does not have the format."""
    found: dict[str, Measured] = {}
    with closing(
        executor.run(partial(_measure, image=image, max_megapixels=max_megapixels), tars, on_progress)
    ) as run:
        for name, measured in run:
            if measured is None:
                return {}
            found[name] = measured
    return found


def _formats(tars: list[ExternalTar], size: int, max_megapixels: float) -> Iterator[ImageFormat]:
    """Yield the formats that all images may have, judged by the first that decodes; the strictest first."""
    shapes = (
        pixels.shape[:2]
        for tar in tars
        for _, pixels in islice(_decoded(tar, max_megapixels), _FIRST_LOOK)
        if not isinstance(pixels, str)
    )
    for height, width in islice(shapes, 1):
        if height == width:
            yield ImageFormat(height, "square", None, None)
        yield ImageFormat(min(height, width), "aspect", None, None)
    yield ImageFormat(size, "original", None, None)


def _measure(tar: ExternalTar, image: ImageFormat, max_megapixels: float) -> tuple[str, Measured | None]:
    """Decode a tar's images; runs in a worker. Return its name, and None once an image lacks the format."""
    square = image.mode == "square" and tar.split == "train"
    moments = Moments.for_square(image.size) if square else Moments()
    skipped: dict[int, str] = {}
    for number, pixels in _decoded(tar, max_megapixels):
        count_image()
        if isinstance(pixels, str):
            skipped[number] = pixels
            continue
        height, width = pixels.shape[:2]
        if image.mode != "original" and min(height, width) != image.size:
            return tar.name, None
        if image.mode == "square" and height != width:
            return tar.name, None
        if tar.split != "train":
            continue
        try:
            moments.add(resize_shorter(pixels, image.size))
        except DecodeError as error:
            skipped[number] = str(error)
    path = tar.root / tar.name
    return tar.name, Measured(moments, sha256_of(path), path.stat().st_size, skipped)


def _decoded(tar: ExternalTar, max_megapixels: float) -> Iterator[tuple[int, Pixels | str]]:
    """Yield each sample's index, and its pixels, uint8 (H, W, 3), or why a loader cannot load them."""
    with (tar.root / tar.name).open("rb") as file:
        for number, sample in enumerate(tar.samples):
            file.seek(sample.offset)
            data = file.read(sample.size)
            try:
                image = decode(data, max_megapixels)
            except DecodeError as error:
                yield number, str(error)
                continue
            yield number, _unloadable(data, image.repair) or image.pixels


def _unloadable(data: bytes, repair: str) -> str:
    """Return why DALI cannot decode an image that preparation would convert or repair; "" if it can.

    Measured with DALI 2.4: it decodes CMYK, PNG, WebP, BMP, TIFF and PPM as preparation does.
    """
    if data[:3] == b"GIF":
        return "a GIF, which only `alexnet-prep shard` can convert"
    if data[:2] == b"\xff\xd8" and repair and "CMYK" not in repair:
        return f"{repair}, which only `alexnet-prep shard` can do"
    return ""
