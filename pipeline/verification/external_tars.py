"""Tars that another tool wrote: find their labels, and measure their images' format and pixel statistics."""

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.dataset.manifest import ImageFormat, Shard
from pipeline.dataset.shards import describe
from pipeline.dataset.tar import BLOCK
from pipeline.errors import ToolkitError, UsageError
from pipeline.executors.base import Executor
from pipeline.executors.local import count_image
from pipeline.images.codec import DecodeError, Pixels, decode, resize_shorter
from pipeline.images.statistics import Moments
from pipeline.progress import OnProgress
from pipeline.sources.base import Container, Sample
from pipeline.sources.listers.webdataset import LABEL_FIELDS, SamplePart, read_tar
from pipeline.storage.open import open_store
from pipeline.verification.tasks import run_tasks

REMEDY = "run `alexnet-prep shard FOLDER OUT --layout webdataset` instead"
"""Ends the messages about tars that cannot be read in place."""
# Whole numbers, which some tools write as 7.0; the digits before the point are the label.
_NUMBER = re.compile(rb"\s*\+?([0-9]+)(?:\.0*)?[\s\0]*")
_FIELD = re.compile(rb'"(?:%s)"\s*:\s*"?\s*\+?([0-9]+)' % "|".join(LABEL_FIELDS).encode())
# Images of each tar that are tried until one decodes, whose shape then suggests the formats.
_FIRST_LOOK = 100


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


class ExternalTar(NamedTuple):
    """A tar that another tool wrote; each is a task.

    Attributes:
        root: Absolute path of the dataset's folder.
        name: Path of the tar below `root`.
        split: "train", "val" or "test".
        samples: Samples of the tar, in the order of their bytes.
        labels: Label of each sample; empty until it is found.
    """

    root: Path
    name: str
    split: str
    samples: tuple[Sample, ...]
    labels: tuple[LabelSpan, ...] = ()


class Measured(NamedTuple):
    """Measurements of one tar.

    Attributes:
        moments: Moments of its images if it is training data; else empty.
        shard: The manifest's record of the tar, with the number of samples that are not skipped.
        skipped: Index of a sample in `ExternalTar.samples` → why a loader cannot load the image.
    """

    moments: Moments
    shard: Shard
    skipped: dict[int, str]


class _OtherFormatError(ToolkitError):
    """An image does not have the format that is tried."""


def find_labels(tar: ExternalTar) -> tuple[LabelSpan, ...]:
    """Find the label of each sample in a tar; runs in a worker.

    Raises:
        UsageError: A damaged tar, or a label that is not an integer.
    """
    store = open_store(tar.root)
    labels: dict[int, SamplePart] = {}
    for sample in read_tar(store, Container(tar.name, store.size(tar.name))):
        image, label = sample.get("image"), sample.get("cls") or sample.get("json")
        if image and label:
            labels[image.member.offset] = label
    return tuple(_span(store.url_of(tar.name), labels[sample.offset]) for sample in tar.samples)


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
    match = re.fullmatch(r"\s*\+?([0-9]+)(?:\.0*)?\s*", text)
    return int(match[1]) if match else None


def measure(
    executor: Executor, tars: list[ExternalTar], size: int, max_megapixels: float, on_progress: OnProgress
) -> tuple[ImageFormat, list[Measured]]:
    """Decode every image, strictly, and find the strictest image format that all of them have.

    Formats are tried from the strictest on. The first image that does not have a format ends its pass, mostly
    early.

    Args:
        executor: Executor of the tasks, one for each tar.
        tars: Tars to read.
        size: Shorter side in pixels to which images are scaled before measuring, if their shorter sides
            differ.
        max_megapixels: Images with more megapixels are left out.
        on_progress: Called with (images done, images in all).

    Returns:
        The format, and the measurements of each tar.

    Raises:
        RunError: A worker died.
    """
    images = [len(tar.samples) for tar in tars]

    def measured(image: ImageFormat) -> tuple[ImageFormat, list[Measured]]:
        work = partial(_measure, image=image, max_megapixels=max_megapixels)
        return image, run_tasks(executor, work, tars, images, on_progress)

    *likely, any_size = _formats(tars, size, max_megapixels)
    for image in likely:
        with suppress(_OtherFormatError):
            return measured(image)
    return measured(any_size)


def _formats(tars: list[ExternalTar], size: int, max_megapixels: float) -> Iterator[ImageFormat]:
    """Yield the formats that all images may have, judged by the first that decodes; the strictest first."""
    shapes = (
        pixels.shape[:2]
        for tar in tars
        for pixels in islice(_decoded(tar, max_megapixels), _FIRST_LOOK)
        if not isinstance(pixels, str)
    )
    for height, width in islice(shapes, 1):
        if height == width:
            yield ImageFormat(height, "square", None, None)
        yield ImageFormat(min(height, width), "aspect", None, None)
    yield ImageFormat(size, "original", None, None)


def _measure(tar: ExternalTar, image: ImageFormat, max_megapixels: float) -> Measured:
    """Decode a tar's images; runs in a worker. Raises _OtherFormatError where an image lacks the format."""
    square = image.mode == "square" and tar.split == "train"
    moments = Moments.for_square(image.size) if square else Moments()
    skipped: dict[int, str] = {}
    for number, pixels in enumerate(_decoded(tar, max_megapixels)):
        count_image()
        if isinstance(pixels, str):
            skipped[number] = pixels
            continue
        height, width = pixels.shape[:2]
        if image.mode != "original" and min(height, width) != image.size:
            raise _OtherFormatError
        if image.mode == "square" and height != width:
            raise _OtherFormatError
        if tar.split != "train":
            continue
        try:
            moments.add(resize_shorter(pixels, image.size))
        except DecodeError as error:
            skipped[number] = str(error)
    shard = describe(tar.root, tar.root / tar.name, len(tar.samples) - len(skipped))
    return Measured(moments, shard, skipped)


def _decoded(tar: ExternalTar, max_megapixels: float) -> Iterator[Pixels | str]:
    """Yield each sample's pixels, uint8 (H, W, 3), or why a loader cannot load them."""
    with (tar.root / tar.name).open("rb") as file:
        for sample in tar.samples:
            file.seek(sample.offset)
            data = file.read(sample.size)
            try:
                image = decode(data, max_megapixels)
                yield _unloadable(data, image.repair) or image.pixels
            except DecodeError as error:
                yield str(error)


def _unloadable(data: bytes, repair: str) -> str:
    """Return why DALI cannot decode an image that preparation would convert or repair; "" if it can.

    Measured with DALI 2.4: it decodes CMYK, PNG, WebP, BMP, TIFF and PPM as preparation does.
    """
    if data[:3] == b"GIF":
        return "a GIF, which only `alexnet-prep shard` can convert"
    if data[:2] == b"\xff\xd8" and repair and "CMYK" not in repair:
        return f"{repair}, which only `alexnet-prep shard` can do"
    return ""
