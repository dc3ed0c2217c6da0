"""Verify one shard: compare its tar, index and images with the manifest."""

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
"""Problems of members that are listed for each shard; further ones are only counted."""


@dataclass(frozen=True)
class Problem:
    """A problem of a dataset.

    Attributes:
        place: Path of the file or tar member below the dataset's root.
        what: Description of the problem, one line.
    """

    place: str
    what: str


@dataclass(frozen=True)
class ShardSpec:
    """Requirements that every shard of a dataset must meet.

    Attributes:
        store: Folder of the dataset.
        classes: Number of classes; labels must be below it.
        label_width: Number of digits of every .cls member.
        image: Size and encoding of the images.
        adopted: Whether another tool wrote the tars; then only the members that the index lists count.
        max_megapixels: Images with more megapixels are not decoded.
        decode: Whether to decode the images.
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
    """Report of one shard.

    Attributes:
        problems: Problems of its files, and the first MOST_PROBLEMS of its members.
        samples: Number of samples in the tar.
        size: Size of the tar in bytes.
        pixels: Pixels of all its images; in an adopted shard, of those that were decoded.
        labels: int64 (classes,), number of samples of each label.
        keys: uint64 (samples,), a hash of each key; empty for an adopted shard, whose keys may repeat.
        headers: int64 (samples,), byte offset of each sample's first tar header; see `key_at`.
    """

    problems: tuple[Problem, ...]
    samples: int
    size: int
    pixels: int
    labels: NDArray[np.int64]
    keys: NDArray[np.uint64]
    headers: NDArray[np.int64]


def limited(problems: Iterable[Problem], place: str) -> tuple[Problem, ...]:
    """Return the first MOST_PROBLEMS problems, then one at `place` that says how many more there are."""
    listed = tuple(problems)
    if len(listed) <= MOST_PROBLEMS:
        return listed
    return (*listed[:MOST_PROBLEMS], Problem(place, f"and {len(listed) - MOST_PROBLEMS:,} more problems"))


class Check:
    """Collects the problems and counts of a shard while it is checked.

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
        """Return the report of all that was collected."""
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
        """Context manager that turns a missing or unreadable file into a problem."""
        try:
            yield
        except FileNotFoundError:
            self.problem("missing", name)
        except OSError as error:
            self.problem(f"unreadable: {error.strerror or error}", name)

    def problem(self, what: str, name: str | None = None) -> None:
        """Add a problem of the tar, or of the file `name`."""
        self._problems.append(Problem(name or self.shard.name, what))

    def member_problem(self, name: str, what: str) -> None:
        """Add a problem of a member or of a sample."""
        self._member_problems.append(Problem(f"{self.shard.name}/{shown(name)}", what))

    def count(self) -> None:
        """Compare the number of samples with the manifest's, after all samples were read."""
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
        """Check an image that the shard writer stored: size, colors, and that it decodes without repairs."""
        try:
            height, width, *stored = simplejpeg.decode_jpeg_header(data)
        except (ValueError, KeyError) as error:  # KeyError: a chroma subsampling unknown to simplejpeg
            self.member_problem(name, f"not a JPEG as the shard writer stores it: {error}")
            return
        self._pixels += height * width
        image = self.spec.image
        if what := _wrong_size(height, width, image) or _wrong_colors(stored, image):
            self.member_problem(name, what)
        elif (decoded := self._decode(name, data)) and decoded.repair:
            self.member_problem(name, f"decodes only after a repair: {decoded.repair}")

    def external_image(self, name: str, data: bytes) -> None:
        """Check an image that another tool stored: it may have any format that decodes."""
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
    """Return text from a possibly damaged file for a message: ASCII, one line, at most 120 characters."""
    safe = ascii(text[:120])[1:-1]
    return safe if len(text) <= 120 else f"{safe}..."


def _wrong_size(height: int, width: int, image: ImageFormat) -> str:
    """Return how an image's size differs from the manifest's, or ""."""
    size = image.size
    if image.mode == "square" and (height, width) != (size, size):
        return f"{width}x{height} pixels; expected {size}x{size}"
    if image.mode == "aspect" and min(height, width) != size:
        return f"{width}x{height} pixels; expected {size} on the shorter side"
    return ""


def _wrong_colors(stored: list[str], image: ImageFormat) -> str:
    """Return how [color space, chroma subsampling] differ from the manifest's, or ""."""
    # Images kept at their original size were encoded by other programs.
    if image.mode == "original" or image.subsampling is None:
        return ""
    expected = ["YCbCr", image.subsampling.replace(":", "")]
    return "" if stored == expected else f"stored as {' '.join(stored)}; expected {' '.join(expected)}"


_BLOCK = 512
# Fields of a USTAR header: the name; the type flag; magic and version.
_NAME, _KIND, _MAGIC = slice(0, 100), slice(156, 157), slice(257, 265)
# Type flag, and magic and version, of a plain file.
_PLAIN = (b"0", b"ustar\x0000")
# One dot, between key and extension; no slash, which splits paths, and no space, which splits index lines.
_MEMBER = re.compile(r"[!-.0-~]+\.(jpg|cls)")


def check_shard(shard: Shard, spec: ShardSpec) -> ShardReport:
    """Read a shard's files again and compare everything with the manifest.

    Damage is reported, not raised, so that one damaged shard does not hide another.

    Raises:
        UsageError: The bucket denies access.
        RunError: The bucket cannot be reached.
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
    """Read the key of the sample whose first tar header is at byte offset `header` of a tar."""
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
    """Check every sample of a tar that the shard writer made, then its index against the tar's headers."""
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
    """Yield the tar's files; a header that is not that of a plain USTAR file is a problem."""
    offset = 0
    for member in scan(file, "not a whole tar", remedy="prepare the dataset again in a new folder"):
        file.seek(member.offset - _BLOCK)
        header = file.read(_BLOCK)
        if member.offset - _BLOCK != offset:
            check.member_problem(member.name, f"behind a PAX, GNU or folder header at offset {offset:,}")
        elif (header[_KIND], header[_MAGIC]) != _PLAIN:
            check.member_problem(
                member.name, f"its header at offset {offset:,} is not USTAR's for a plain file"
            )
        yield member
        offset = member.offset + -(-member.size // _BLOCK) * _BLOCK


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
        check.member_problem(
            name, f"the index lists {', '.join(sample) or 'nothing'} for it; expected jpg, cls"
        )
    for extension, (offset, size, member) in sample.items():
        file.seek(max(offset, 0))
        data = file.read(max(size, 0))
        if offset < 0 or size <= 0 or len(data) != size:
            check.member_problem(
                member, f"the index lists {size} bytes at {offset:,}, which are not in the tar"
            )
        elif extension == "jpg":
            check.external_image(member, data)
        elif extension == "cls":
            digits = re.search(rb"[0-9]{1,%d}\Z" % check.spec.label_width, data)
            if digits:
                check.label(member, digits[0])
            else:
                check.member_problem(member, "the bytes that the index points to do not end with a label")


def _first_difference(found: bytes, expected: list[str]) -> str:
    """Describe the first line in which an index differs from the one that the tar's headers give."""
    lines = found.decode("latin-1").split("\n")
    pairs = enumerate(zip(lines, expected, strict=False))
    number = next((n for n, (a, b) in pairs if a != b), min(len(lines), len(expected)))
    here, there = (f"'{shown(t[number])}'" if number < len(t) else "missing" for t in (lines, expected))
    return f"not the tar's index: line {number + 1} is {here}; the tar gives {there}"
