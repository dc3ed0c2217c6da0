"""Proving one shard: its tar, its index and its images, against what the manifest says of them."""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.dataset.index import INDEX_VERSION, index_name, read_index
from pipeline.dataset.manifest import ImageFormat, Shard
from pipeline.dataset.tar import Member, scan
from pipeline.errors import UsageError
from pipeline.executors.local import count_image
from pipeline.images.codec import Decoded, DecodeError, decode
from pipeline.storage.atomic import sha256_of
from pipeline.storage.base import Span, Store

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
        image: how images are stored.
        adopted: whether another tool wrote the tars, so that the index says what they hold.
        max_megapixels: larger images are not decoded.
        decode: whether to decode the images.
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
        pixels: of all its images; of an adopted shard, of those that were decoded.
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

    def image(self, name: str, data: bytes) -> None:
        """Check an image that the shard writer stored: its form, then whether it decodes as it is."""
        try:
            height, width, *stored = simplejpeg.decode_jpeg_header(data)
        except (ValueError, KeyError) as error:  # KeyError: a sampling that simplejpeg has no name for
            self.member_fault(name, f"no JPEG of the shard writer's: {error}")
            return
        self._pixels += height * width
        image = self.rules.image
        if what := _wrong_size(height, width, image) or _wrong_colors(stored, image):
            self.member_fault(name, what)
        elif (decoded := self._decode(name, data)) and decoded.repair:
            self.member_fault(name, f"does not decode as it is: {decoded.repair}")

    def foreign_image(self, name: str, data: bytes) -> None:
        """Check an image of another tool's: any format that decodes will do."""
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
    """What of an image's size the manifest has otherwise, or ''."""
    size = image.size
    if image.mode == "square" and (height, width) != (size, size):
        return f"{width}x{height} pixels; expected {size}x{size}"
    if image.mode == "aspect" and min(height, width) != size:
        return f"{width}x{height} pixels; expected {size} on the shorter side"
    return ""


def _wrong_colors(stored: list[str], image: ImageFormat) -> str:
    """What of [color space, subsampling] the manifest has otherwise, or ''."""
    # Images of their original size were encoded by anybody.
    if image.mode == "original" or image.subsampling is None:
        return ""
    expected = ["YCbCr", image.subsampling.replace(":", "")]
    return "" if stored == expected else f"stored as {' '.join(stored)}; expected {' '.join(expected)}"


_BLOCK = 512
# Of a USTAR header: the name, the type flag, magic and version; and the latter two of a plain file.
_NAME, _KIND, _MAGIC = slice(0, 100), slice(156, 157), slice(257, 265)
_PLAIN = (b"0", b"ustar\x0000")
# One dot, between key and extension, and nothing that a path or an index's line is split at.
_MEMBER = re.compile(r"[!-.0-~]+\.(jpg|cls)")


def check_shard(shard: Shard, rules: Rules) -> Findings:
    """Read a shard's files again and compare everything with the manifest.

    Damage is told and not raised, so that one shard's does not hide another's.

    Raises:
        UsageError, RunError: a bucket refuses or cannot be reached.
    """
    check = Check(shard, rules)
    index = None
    with check.reading(check.index_name):
        index = rules.store.read(Span(check.index_name))
    with check.reading(shard.name), rules.store.fetched(shard.name) as path:
        _check_bytes(path, check)
        with path.open("rb") as file:
            if not rules.adopted:
                _check_written(file, index, check)
            elif index is not None:
                _check_indexed(file, check)
    return check.findings()


def key_at(store: Store, tar: str, header: int) -> str:
    """Read the key of the sample whose first header is at an offset of a tar."""
    block = store.read(Span(tar, header, _BLOCK))
    return block[_NAME].partition(b".")[0].decode("ascii", "backslashreplace")


def _check_bytes(tar: Path, check: Check) -> None:
    """Compare the tar's size and checksum."""
    shard, checksum = check.shard, sha256_of(tar)
    check.size = tar.stat().st_size
    if check.size != shard.bytes:
        check.fault(f"{check.size:,} bytes, but the manifest says {shard.bytes:,}")
    if checksum != shard.sha256:
        check.fault(f"its SHA-256 is {checksum}, but the manifest says {shard.sha256}")


def _check_written(file: BinaryIO, index: bytes | None, check: Check) -> None:
    """Check every sample of a tar that the shard writer made, then the index that the headers give."""
    lines: list[str] = []
    try:
        for key, members in groupby(_plain(file, check), lambda member: member.name.partition(".")[0]):
            lines.append(_check_sample(file, key, list(members), check))
            count_image()
    except UsageError as error:
        check.fault(f"{error} ({check.samples:,} samples before that were read)")
        return
    check.count()
    expected = [f"{INDEX_VERSION} {len(lines)}", *lines, ""]
    if index is not None and index != "\n".join(expected).encode("utf-8", "surrogateescape"):
        check.fault(_first_difference(index, expected), check.index_name)


def _plain(file: BinaryIO, check: Check) -> Iterator[Member]:
    """The tar's files; a header of another kind than a plain USTAR file's is a fault."""
    at = 0
    for member in scan(file, "not a whole tar", remedy="prepare the dataset again in a new folder"):
        file.seek(member.offset - _BLOCK)
        header = file.read(_BLOCK)
        if member.offset - _BLOCK != at:
            check.member_fault(member.name, f"behind a PAX, GNU or folder header at offset {at:,}")
        elif (header[_KIND], header[_MAGIC]) != _PLAIN:
            check.member_fault(member.name, f"its header at offset {at:,} is not USTAR's for a plain file")
        yield member
        at = member.offset + -(-member.size // _BLOCK) * _BLOCK


def _check_sample(file: BinaryIO, key: str, members: Sequence[Member], check: Check) -> str:
    """Check the members of one key; return their line of the index."""
    check.samples += 1
    hashed = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    check.keys.append(int.from_bytes(hashed, "little"))
    check.headers.append(members[0].offset - _BLOCK)
    found = [member.name for member in members]
    if found != [f"{key}.jpg", f"{key}.cls"] or not all(map(_MEMBER.fullmatch, found)):
        check.member_fault(key, f"its members are {', '.join(map(shown, found))}; expected KEY.jpg, KEY.cls")
    for name, offset, size in members:
        file.seek(offset)
        data = file.read(size)
        if name.endswith(".jpg"):
            check.image(name, data)
        elif name.endswith(".cls"):
            if len(data) == check.rules.label_width and data.isdigit():
                check.label(name, data)
            else:
                label, width = shown(data.decode("latin-1")), check.rules.label_width
                check.member_fault(name, f"the label is '{label}'; expected {width} digits")
    return " ".join(f"{m.name.partition('.')[2]} {m.offset} {m.size} {m.name}" for m in members)


def _check_indexed(file: BinaryIO, check: Check) -> None:
    """Check every sample that the index of an adopted tar lists."""
    try:
        with check.rules.store.fetched(check.index_name) as path:
            samples = read_index(path)
    except UsageError as error:
        check.fault(f"not a complete {INDEX_VERSION} index: {error.__cause__}", check.index_name)
        return
    for sample in samples:
        _check_entries(file, sample, check)
        count_image()
    check.count()


def _check_entries(file: BinaryIO, sample: dict[str, tuple[int, int, str]], check: Check) -> None:
    check.samples += 1
    name = next(iter(sample.values()))[2] if sample else f"sample {check.samples}"
    if sorted(sample) != ["cls", "jpg"]:
        check.member_fault(name, f"the index has {', '.join(sample) or 'nothing'} of it; expected jpg, cls")
    for extension, (offset, size, member) in sample.items():
        file.seek(max(offset, 0))
        data = file.read(max(size, 0))
        if offset < 0 or size <= 0 or len(data) != size:
            check.member_fault(member, f"the index has {size} bytes at {offset:,}, which are not in the tar")
        elif extension == "jpg":
            check.foreign_image(member, data)
        elif extension == "cls":
            digits = re.search(rb"[0-9]{1,%d}\Z" % check.rules.label_width, data)
            if digits:
                check.label(member, digits[0])
            else:
                check.member_fault(member, "no digits of a label end the bytes that the index points to")


def _first_difference(found: bytes, expected: list[str]) -> str:
    """Where an index departs from the one that the tar gives."""
    lines = found.decode("latin-1").split("\n")
    pairs = enumerate(zip(lines, expected, strict=False))
    number = next((n for n, (a, b) in pairs if a != b), min(len(lines), len(expected)))
    here, there = (f"'{shown(t[number])}'" if number < len(t) else "missing" for t in (lines, expected))
    return f"not the tar's index: line {number + 1} is {here}; the tar gives {there}"
