"""The images in other tools' tars: which format they have, and what their pixels sum to."""

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
REMEDY = "run `alexnet-prep shard FOLDER OUT --layout webdataset` instead"
"""What to do about tars that cannot be read in place."""
_NUMBER = re.compile(rb"\s*\+?([0-9]+)[\s\0]*")
_FIELD = re.compile(rb'"(?:%s)"\s*:\s*"?\s*\+?([0-9]+)' % "|".join(LABEL_FIELDS).encode())


class LabelSpan(NamedTuple):
    """Bytes of a tar that end with a label's last digit: `offset` (a block's), `size`, and the `value`."""

    offset: int
    size: int
    value: int


def locate(store: Store, container: Container, images: Iterable[int]) -> list[LabelSpan]:
    """Find the label of each image in a tar.

    Args:
        store: the folder of the tar.
        container: the tar.
        images: where their bytes start.

    Raises:
        UsageError: a damaged tar, or a label that is no whole number.
    """
    place = store.url_of(container.path)
    labels: dict[int, SamplePart] = {}
    for sample in read_tar(store, container):
        image, label = sample.get("image"), sample.get("cls") or sample.get("json")
        if image and label:
            labels[image.member.offset] = label
    return [_span(place, labels[offset]) for offset in images]


def _span(place: str, label: SamplePart) -> LabelSpan:
    data = label.content
    found = _NUMBER.fullmatch(data) if label.kind == "cls" else _digits_in_json(data)
    if found is None:
        text = ascii(data[:40].decode("utf-8", "replace"))
        raise UsageError(
            f"{place}: {label.member.name} has no whole number as its label ({text}), and only numbers are "
            f"read in place; {REMEDY}"
        )
    start, end = (label.member.offset + at for at in found.span(1))
    block = start // BLOCK * BLOCK
    return LabelSpan(block, end - block, int(found[1]))


def _digits_in_json(data: bytes) -> re.Match[bytes] | None:
    """The digits that set the label; objects inside may have fields of the same names."""
    label = _json_label(data)
    for match in _FIELD.finditer(data):
        other = b"1" if match[1] != b"1" else b"2"
        changed = data[: match.start(1)] + other + data[match.end(1) :]
        if label == int(match[1]) != _json_label(changed):
            return match
    return None


def _json_label(data: bytes) -> int | None:
    """The whole number that the first of the label's fields holds, as a number or a text."""
    fields = msgspec.json.decode(data)
    given = (fields.get(name) for name in LABEL_FIELDS)
    text = str(next((value for value in given if value is not None), ""))
    return int(text) if re.fullmatch(r"\s*\+?[0-9]+\s*", text) else None


Progress = Callable[[int, int], None]
"""Called with (images handled, images in all)."""

# Of how many images of a tar one must decode, for the first look at their shape.
_FIRST_LOOK = 100


class ExternalTar(NamedTuple):
    """A task: the tar `name` below `root`, its split, and its images in the order in which they lie."""

    root: Path
    name: str
    split: str
    samples: tuple[Sample, ...]


class Measured(NamedTuple):
    """What a tar holds.

    Attributes:
        moments: of its images, where it is for training; else empty.
        sha256, bytes: of the tar.
        skipped: place in the tar's order → why a loader cannot have the image.
    """

    moments: Moments
    sha256: str
    bytes: int
    skipped: dict[int, str]


def measure(
    engine: Executor, tars: list[ExternalTar], size: int, max_megapixels: float, progress: Progress | None
) -> tuple[ImageFormat, dict[str, Measured]]:
    """Decode every image, strictly, and find the format that fits all of them.

    Formats are tried from the strictest on; a misfit, which mostly comes early, ends a try.

    Args:
        engine: where tars are read, each a task.
        tars: to read.
        size: shorter side that images of different shorter sides are scaled to before they count.
        max_megapixels: larger images are left out.
        progress: told how far the decoding is.

    Returns:
        The format, and what each tar holds by its name.

    Raises:
        RunError: a worker died.
    """
    total = sum(len(tar.samples) for tar in tars)

    def on_progress(done: int) -> None:
        if progress:
            progress(min(done, total), total)

    *likely, any_size = _formats(tars, size, max_megapixels)
    for image in likely:
        if found := _try(engine, tars, image, max_megapixels, on_progress):
            break
    else:
        image, found = any_size, _try(engine, tars, any_size, max_megapixels, on_progress)
    on_progress(total)
    return image, found


def _try(
    engine: Executor,
    tars: list[ExternalTar],
    image: ImageFormat,
    max_megapixels: float,
    on_progress: OnProgress,
) -> dict[str, Measured]:
    """What each tar holds, or nothing where an image has not the format."""
    found: dict[str, Measured] = {}
    with closing(
        engine.run(partial(_measure, image=image, max_megapixels=max_megapixels), tars, on_progress)
    ) as run:
        for name, measured in run:
            if measured is None:
                return {}
            found[name] = measured
    return found


def _formats(tars: list[ExternalTar], size: int, max_megapixels: float) -> Iterator[ImageFormat]:
    """The formats that the images may all have, judged by one of them; the strictest first."""
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
    """In a worker: decode a tar's images; None as soon as one has not the format."""
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
    """Each image's place in the tar's order, and its pixels or why a loader could not have them."""
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
    """Why DALI could not decode what preparation would convert or mend, or ''.

    Measured with DALI 2.4: it decodes CMYK, PNG, WebP, BMP, TIFF and PPM as preparation does.
    """
    if data[:3] == b"GIF":
        return "a GIF, which only `alexnet-prep shard` can convert"
    if data[:2] == b"\xff\xd8" and repair and "CMYK" not in repair:
        return f"{repair}, which only `alexnet-prep shard` can do"
    return ""
