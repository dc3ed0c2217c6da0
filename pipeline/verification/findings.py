"""What is found wrong with a shard, and the checks of one label and one picture that find it."""

from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.dataset.manifest import ImageFormat
from pipeline.dataset.shards import Shard, index_name
from pipeline.images.codec import Decoded, DecodeError, decode
from pipeline.storage.base import Store

MOST_FAULTS = 20
"""Faults of members that are told one by one for each shard; more are counted."""


@dataclass(frozen=True)
class Fault:
    """Something wrong: the file or tar member (`place`, below the dataset's root), and `what`, one line."""

    place: str
    what: str


@dataclass(frozen=True)
class Rules:
    """What every shard of a dataset has to obey.

    Attributes:
        store: the dataset's folder.
        classes: how many; labels are below it.
        label_width: digits of every .cls.
        image: how pictures are stored.
        adopted: whether another tool wrote the tars, so that the index says what they hold.
        max_megapixels: larger pictures are not decoded.
        decode: whether to decode the pictures.
    """

    store: Store
    classes: int
    label_width: int
    image: ImageFormat
    adopted: bool
    max_megapixels: float
    decode: bool


@dataclass(frozen=True)
class Findings:
    """What one shard was found to be.

    Attributes:
        faults: of its files, and at most MOST_FAULTS of its members.
        samples: in the tar.
        size: of the tar in bytes.
        pixels: of all its pictures; of an adopted shard, of those that were decoded.
        labels: int64 (classes,), samples of each label.
        keys: uint64 (samples,), a hash of each key; none for an adopted shard, whose keys may repeat.
        headers: int64 (samples,), where each sample's first tar header is; see `key_at`.
    """

    faults: tuple[Fault, ...]
    samples: int
    size: int
    pixels: int
    labels: NDArray[np.int64]
    keys: NDArray[np.uint64]
    headers: NDArray[np.int64]


def limited(faults: Iterable[Fault], place: str) -> tuple[Fault, ...]:
    """The first MOST_FAULTS of them, and how many more there are."""
    listed = tuple(faults)
    if len(listed) <= MOST_FAULTS:
        return listed
    return (*listed[:MOST_FAULTS], Fault(place, f"and {len(listed) - MOST_FAULTS:,} faults more"))


class Check:
    """What was found so far of a shard, while it is checked.

    Attributes:
        samples, size, keys, headers: see `Findings`.
    """

    def __init__(self, shard: Shard, rules: Rules) -> None:
        self.shard = shard
        self.rules = rules
        self.samples = 0
        self.keys = array("Q")
        self.headers = array("q")
        self._faults: list[Fault] = []
        self._member_faults: list[Fault] = []
        self._labels = array("q")
        self._pixels = 0
        self.size = 0

    def findings(self) -> Findings:
        """Sum up."""
        return Findings(
            faults=(*self._faults, *limited(self._member_faults, self.shard.name)),
            samples=self.samples,
            size=self.size,
            pixels=self._pixels,
            labels=np.bincount(np.array(self._labels, np.int64), minlength=self.rules.classes),
            keys=np.array(self.keys, np.uint64),
            headers=np.array(self.headers, np.int64),
        )

    @property
    def index_name(self) -> str:
        """Name of the tar's index."""
        return index_name(self.shard.name)

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turn a file that is missing or unreadable into a fault."""
        try:
            yield
        except FileNotFoundError:
            self.fault("missing", name)
        except OSError as error:
            self.fault(f"unreadable: {error.strerror or error}", name)

    def fault(self, what: str, name: str | None = None) -> None:
        """Note a fault of the tar, or of the file `name`."""
        self._faults.append(Fault(name or self.shard.name, what))

    def member_fault(self, name: str, what: str) -> None:
        """Note a fault of a member or of a sample."""
        self._member_faults.append(Fault(f"{self.shard.name}/{shown(name)}", what))

    def count(self) -> None:
        """Compare the number of samples, once all are known."""
        if self.samples != self.shard.samples:
            self.fault(f"{self.samples:,} samples, but the manifest says {self.shard.samples:,}")

    def label(self, name: str, digits: bytes) -> None:
        """Check a label's value and count it."""
        if int(digits) < self.rules.classes:
            self._labels.append(int(digits))
        else:
            self.member_fault(name, f"the label is {int(digits)}, but there are {self.rules.classes} classes")

    def picture(self, name: str, data: bytes) -> None:
        """Check a picture that the shard writer stored: its form, then whether it decodes as it is."""
        try:
            height, width, *stored = simplejpeg.decode_jpeg_header(data)
        except (ValueError, KeyError) as error:  # KeyError: a sampling that simplejpeg has no name for
            self.member_fault(name, f"no JPEG of the shard writer's: {error}")
            return
        self._pixels += height * width
        image = self.rules.image
        if what := _wrong_size(height, width, image) or _wrong_colours(stored, image):
            self.member_fault(name, what)
        elif (decoded := self._decode(name, data)) and decoded.repair:
            self.member_fault(name, f"does not decode as it is: {decoded.repair}")

    def foreign_picture(self, name: str, data: bytes) -> None:
        """Check a picture of another tool's: any format that decodes will do."""
        if decoded := self._decode(name, data):
            height, width = decoded.shape
            self._pixels += height * width
            if what := _wrong_size(height, width, self.rules.image):
                self.member_fault(name, what)

    def _decode(self, name: str, data: bytes) -> Decoded | None:
        if not self.rules.decode:
            return None
        try:
            return decode(data, self.rules.max_megapixels, keep=self.rules.image.mode == "original")
        except DecodeError as error:
            self.member_fault(name, f"does not decode: {error}")
            return None


def shown(text: str) -> str:
    """Text of a file that may be damaged, fit for one line."""
    safe = ascii(text[:120])[1:-1]
    return safe if len(text) <= 120 else f"{safe}..."


def _wrong_size(height: int, width: int, image: ImageFormat) -> str:
    """What of a picture's size the manifest has otherwise, or ''."""
    size = image.size
    if image.mode == "square" and (height, width) != (size, size):
        return f"{width}x{height} pixels; expected {size}x{size}"
    if image.mode == "aspect" and min(height, width) != size:
        return f"{width}x{height} pixels; expected {size} on the shorter side"
    return ""


def _wrong_colours(stored: list[str], image: ImageFormat) -> str:
    """What of [colour space, subsampling] the manifest has otherwise, or ''."""
    # Pictures of their original size were encoded by anybody.
    if image.mode == "original" or image.subsampling is None:
        return ""
    expected = ["YCbCr", image.subsampling.replace(":", "")]
    return "" if stored == expected else f"stored as {' '.join(stored)}; expected {' '.join(expected)}"
