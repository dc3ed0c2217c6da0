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
from pipeline.storage.base import ByteRange, Store

MOST_PROBLEMS = 20
"""Faults of members that are told one by one for each shard; more are counted."""


@dataclass(frozen=True)
class Problem:
    """Something wrong: the file or tar member (`place`, below the dataset's root), and `what`, one line."""

    place: str
    what: str


@dataclass(frozen=True)
class ShardSpec:
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
class ShardReport:
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

    problems: tuple[Problem, ...]
    samples: int
    size: int
    pixels: int
    labels: NDArray[np.int64]
    keys: NDArray[np.uint64]
    headers: NDArray[np.int64]


def limited(problems: Iterable[Problem], place: str) -> tuple[Problem, ...]:
    """The first MOST_FAULTS of them, and how many more there are."""
    listed = tuple(problems)
    if len(listed) <= MOST_PROBLEMS:
        return listed
    return (*listed[:MOST_PROBLEMS], Problem(place, f"and {len(listed) - MOST_PROBLEMS:,} faults more"))


class Check:
    """What was found so far of a shard, while it is checked.

    Attributes:
        samples, size, keys, headers: see `ShardReport`.
    """

    def __init__(self, shard: Shard, spec: ShardSpec) -> None:
        self.shard = shard
        self.spec = spec
        self.samples = 0
        self.keys = array("Q")
        self.headers = array("q")
        self._problems: list[Problem] = []
        self._member_problems: list[Problem] = []
        self._labels = array("q")
        self._pixels = 0
        self.size = 0

    def report(self) -> ShardReport:
        """Sum up."""
        return ShardReport(
            problems=(*self._problems, *limited(self._member_problems, self.shard.name)),
            samples=self.samples,
            size=self.size,
            pixels=self._pixels,
            labels=np.bincount(np.array(self._labels, np.int64), minlength=self.spec.classes),
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
            self.problem("missing", name)
        except OSError as error:
            self.problem(f"unreadable: {error.strerror or error}", name)

    def problem(self, what: str, name: str | None = None) -> None:
        """Note a fault of the tar, or of the file `name`."""
        self._problems.append(Problem(name or self.shard.name, what))

    def member_problem(self, name: str, what: str) -> None:
        """Note a fault of a member or of a sample."""
        self._member_problems.append(Problem(f"{self.shard.name}/{shown(name)}", what))

    def count(self) -> None:
        """Compare the number of samples, once all are known."""
        if self.samples != self.shard.samples:
            self.problem(f"{self.samples:,} samples, but the manifest says {self.shard.samples:,}")

    def label(self, name: str, digits: bytes) -> None:
        """Check a label's value and count it."""
        if int(digits) < self.spec.classes:
            self._labels.append(int(digits))
        else:
            self.member_problem(
                name, f"the label is {int(digits)}, but there are {self.spec.classes} classes"
            )

    def image(self, name: str, data: bytes) -> None:
        """Check an image that the shard writer stored: its form, then whether it decodes as it is."""
        try:
            height, width, *stored = simplejpeg.decode_jpeg_header(data)
        except (ValueError, KeyError) as error:  # KeyError: a sampling that simplejpeg has no name for
            self.member_problem(name, f"no JPEG of the shard writer's: {error}")
            return
        self._pixels += height * width
        image = self.spec.image
        if what := _wrong_size(height, width, image) or _wrong_colors(stored, image):
            self.member_problem(name, what)
        elif (decoded := self._decode(name, data)) and decoded.repair:
            self.member_problem(name, f"does not decode as it is: {decoded.repair}")

    def external_image(self, name: str, data: bytes) -> None:
        """Check an image of another tool's: any format that decodes will do."""
        if decoded := self._decode(name, data):
            height, width = decoded.shape
            self._pixels += height * width
            if what := _wrong_size(height, width, self.spec.image):
                self.member_problem(name, what)

    def _decode(self, name: str, data: bytes) -> Decoded | None:
        if not self.spec.decode:
            return None
        try:
            return decode(data, self.spec.max_megapixels, keep=self.spec.image.mode == "original")
        except DecodeError as error:
            self.member_problem(name, f"does not decode: {error}")
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


def check_shard(shard: Shard, spec: ShardSpec) -> ShardReport:
    """Read a shard's files again and compare everything with the manifest.

    Damage is told and not raised, so that one shard's does not hide another's.

    Raises:
        UsageError, RunError: a bucket refuses or cannot be reached.
    """
    check = Check(shard, spec)
    index = None
    with check.reading(check.index_name):
        index = spec.store.read(ByteRange(check.index_name))
    with check.reading(shard.name), spec.store.as_local_path(shard.name) as path:
        _check_bytes(path, check)
        with path.open("rb") as file:
            if not spec.adopted:
                _check_written(file, index, check)
            elif index is not None:
                _check_indexed(file, check)
    return check.report()


def key_at(store: Store, tar: str, header: int) -> str:
    """Read the key of the sample whose first header is at an offset of a tar."""
    block = store.read(ByteRange(tar, header, _BLOCK))
    return block[_NAME].partition(b".")[0].decode("ascii", "backslashreplace")


def _check_bytes(tar: Path, check: Check) -> None:
    """Compare the tar's size and checksum."""
    shard, checksum = check.shard, sha256_of(tar)
    check.size = tar.stat().st_size
    if check.size != shard.bytes:
        check.problem(f"{check.size:,} bytes, but the manifest says {shard.bytes:,}")
    if checksum != shard.sha256:
        check.problem(f"its SHA-256 is {checksum}, but the manifest says {shard.sha256}")


def _check_written(file: BinaryIO, index: bytes | None, check: Check) -> None:
    """Check every sample of a tar that the shard writer made, then the index that the headers give."""
    lines: list[str] = []
    try:
        for key, members in groupby(_plain(file, check), lambda member: member.name.partition(".")[0]):
            lines.append(_check_sample(file, key, list(members), check))
            count_image()
    except UsageError as error:
        check.problem(f"{error} ({check.samples:,} samples before that were read)")
        return
    check.count()
    expected = [f"{INDEX_VERSION} {len(lines)}", *lines, ""]
    if index is not None and index != "\n".join(expected).encode("utf-8", "surrogateescape"):
        check.problem(_first_difference(index, expected), check.index_name)


def _plain(file: BinaryIO, check: Check) -> Iterator[Member]:
    """The tar's files; a header of another kind than a plain USTAR file's is a fault."""
    at = 0
    for member in scan(file, "not a whole tar", remedy="prepare the dataset again in a new folder"):
        file.seek(member.offset - _BLOCK)
        header = file.read(_BLOCK)
        if member.offset - _BLOCK != at:
            check.member_problem(member.name, f"behind a PAX, GNU or folder header at offset {at:,}")
        elif (header[_KIND], header[_MAGIC]) != _PLAIN:
            check.member_problem(member.name, f"its header at offset {at:,} is not USTAR's for a plain file")
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
        check.member_problem(
            key, f"its members are {', '.join(map(shown, found))}; expected KEY.jpg, KEY.cls"
        )
    for name, offset, size in members:
        file.seek(offset)
        data = file.read(size)
        if name.endswith(".jpg"):
            check.image(name, data)
        elif name.endswith(".cls"):
            if len(data) == check.spec.label_width and data.isdigit():
                check.label(name, data)
            else:
                label, width = shown(data.decode("latin-1")), check.spec.label_width
                check.member_problem(name, f"the label is '{label}'; expected {width} digits")
    return " ".join(f"{m.name.partition('.')[2]} {m.offset} {m.size} {m.name}" for m in members)


def _check_indexed(file: BinaryIO, check: Check) -> None:
    """Check every sample that the index of an adopted tar lists."""
    try:
        with check.spec.store.as_local_path(check.index_name) as path:
            samples = read_index(path)
    except UsageError as error:
        check.problem(f"not a complete {INDEX_VERSION} index: {error.__cause__}", check.index_name)
        return
    for sample in samples:
        _check_entries(file, sample, check)
        count_image()
    check.count()


def _check_entries(file: BinaryIO, sample: dict[str, tuple[int, int, str]], check: Check) -> None:
    check.samples += 1
    name = next(iter(sample.values()))[2] if sample else f"sample {check.samples}"
    if sorted(sample) != ["cls", "jpg"]:
        check.member_problem(name, f"the index has {', '.join(sample) or 'nothing'} of it; expected jpg, cls")
    for extension, (offset, size, member) in sample.items():
        file.seek(max(offset, 0))
        data = file.read(max(size, 0))
        if offset < 0 or size <= 0 or len(data) != size:
            check.member_problem(
                member, f"the index has {size} bytes at {offset:,}, which are not in the tar"
            )
        elif extension == "jpg":
            check.external_image(member, data)
        elif extension == "cls":
            digits = re.search(rb"[0-9]{1,%d}\Z" % check.spec.label_width, data)
            if digits:
                check.label(member, digits[0])
            else:
                check.member_problem(member, "no digits of a label end the bytes that the index points to")


def _first_difference(found: bytes, expected: list[str]) -> str:
    """Where an index departs from the one that the tar gives."""
    lines = found.decode("latin-1").split("\n")
    pairs = enumerate(zip(lines, expected, strict=False))
    number = next((n for n, (a, b) in pairs if a != b), min(len(lines), len(expected)))
    here, there = (f"'{shown(t[number])}'" if number < len(t) else "missing" for t in (lines, expected))
    return f"not the tar's index: line {number + 1} is {here}; the tar gives {there}"
