"""Verify one shard: compare its tar, index and images with the manifest."""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import simplejpeg

from pipeline.dataset.index import INDEX_VERSION, index_name, parse_index, to_index
from pipeline.dataset.manifest import ImageFormat, Manifest, Shard
from pipeline.dataset.tar import BLOCK, Member, scan
from pipeline.errors import UsageError
from pipeline.executors.local import count_image
from pipeline.host import refuse_too_many_open_files
from pipeline.images.codec import DecodeError, decode
from pipeline.storage.atomic import sha256_of
from pipeline.storage.base import ByteRange, Store
from pipeline.verification.measure import LARGEST

MOST_PROBLEMS = 20
"""Problems of members that are listed for each shard; further ones are only counted."""
# Fields of a USTAR header: the name; the type flag; magic and version.
_NAME, _KIND, _MAGIC = slice(0, 100), slice(156, 157), slice(257, 265)
# Type flag, and magic and version, of a plain file.
_PLAIN = (b"0", b"ustar\x0000")
# One dot, between key and extension; no slash, which splits paths, and no space, which splits index lines.
_MEMBER = re.compile(r"[!-.0-~]+\.(jpg|cls)")


@dataclass(frozen=True)
class Problem:
    """A problem of a dataset.

    Attributes:
        place: Path of the file or tar member below the dataset's root.
        what: Description of the problem, one line.
    """

    place: str
    what: str


@dataclass
class ShardReport:
    """Report of one shard.

    Attributes:
        problems: Problems of its files, and the first MOST_PROBLEMS of its members.
        samples: Number of samples in the tar.
        size: Size of the tar in bytes.
        pixels: Pixels of all its images; in an adopted shard, of those that were decoded.
        labels: The labels of its samples.
        keys: A 64-bit hash of each sample's key; empty for an adopted shard, whose keys may repeat.
        headers: Byte offset of each sample's first tar header, for `key_at`; empty for an adopted shard.
    """

    problems: list[Problem] = field(default_factory=list)
    samples: int = 0
    size: int = 0
    pixels: int = 0
    labels: set[int] = field(default_factory=set)
    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    headers: "array[int]" = field(default_factory=lambda: array("q"))


def limited(problems: Iterable[Problem], place: str) -> tuple[Problem, ...]:
    """Return the first MOST_PROBLEMS problems, then one at `place` that says how many more there are."""
    listed = tuple(problems)
    if len(listed) <= MOST_PROBLEMS:
        return listed
    return (*listed[:MOST_PROBLEMS], Problem(place, f"and {len(listed) - MOST_PROBLEMS:,} more problems"))


@contextmanager
def reading(name: str, problems: list[Problem]) -> Iterator[None]:
    """Context manager that adds the file `name` to the problems if it is missing or unreadable."""
    try:
        yield
    except FileNotFoundError:
        problems.append(Problem(name, "missing"))
    except OSError as error:
        refuse_too_many_open_files(error)
        problems.append(Problem(name, f"unreadable: {error.strerror or error}"))


def key_at(store: Store, tar: str, header: int) -> str:
    """Read the key of the sample whose first tar header is at byte offset `header` of a tar."""
    block = store.read(ByteRange(tar, header, BLOCK))
    return block[_NAME].partition(b".")[0].decode("ascii", "backslashreplace")


def check_shard(shard: Shard, store: Store, manifest: Manifest, decode: bool) -> ShardReport:
    """Read a shard's files again and compare everything with the manifest; runs in a worker.

    Damage is reported, not raised, so that one damaged shard does not hide another.

    Args:
        shard: The shard.
        store: Folder of the dataset.
        manifest: The dataset's manifest; its splits are not used. If another tool wrote the tars, only the
            members that the index lists count.
        decode: Whether to decode the images.

    Raises:
        UsageError: The bucket denies access.
        RunError: The bucket cannot be reached.
    """
    return _Check(shard, store, manifest, decode).run()


class _Check:
    """The check of one shard."""

    def __init__(self, shard: Shard, store: Store, manifest: Manifest, decode: bool) -> None:
        self._shard = shard
        self._store = store
        self._manifest = manifest
        self._decode = decode
        self._index_name = index_name(shard.name)
        self._report = ShardReport()
        self._member_problems: list[Problem] = []

    def run(self) -> ShardReport:
        name, store, problems = self._shard.name, self._store, self._report.problems
        index = None
        with reading(self._index_name, problems):
            index = store.read(ByteRange(self._index_name))
        with reading(name, problems), store.as_local_path(name) as path:
            self._check_bytes(path)
            with path.open("rb") as file:
                if not self._manifest.adopted:
                    self._check_written(file, index)
                elif index is not None:
                    self._check_indexed(file, index)
        problems += limited(self._member_problems, name)
        return self._report

    def _problem(self, what: str, name: str | None = None) -> None:
        """Add a problem of the tar, or of the file `name`."""
        self._report.problems.append(Problem(name or self._shard.name, what))

    def _member_problem(self, name: str, what: str) -> None:
        self._member_problems.append(Problem(f"{self._shard.name}/{_shown(name)}", what))

    def _check_bytes(self, tar: Path) -> None:
        """Compare the tar's size and checksum."""
        shard, checksum, size = self._shard, sha256_of(tar), tar.stat().st_size
        self._report.size = size
        if size != shard.bytes:
            self._problem(f"{size:,} bytes, but the manifest says {shard.bytes:,}")
        if checksum != shard.sha256:
            self._problem(f"its SHA-256 is {checksum}, but the manifest says {shard.sha256}")

    def _check_samples(self) -> None:
        """Compare the number of samples with the manifest's, after all samples were read."""
        found, expected = self._report.samples, self._shard.samples
        if found != expected:
            self._problem(f"{found:,} samples, but the manifest says {expected:,}")

    def _check_written(self, file: BinaryIO, index: bytes | None) -> None:
        """Check each sample of a tar that the shard writer made, then its index against the tar."""
        samples = []
        try:
            for key, group in groupby(self._plain(file), lambda member: member.name.partition(".")[0]):
                members = list(group)
                self._check_sample(file, key, members)
                samples.append([(member.name.partition(".")[2], member) for member in members])
                count_image()
        except UsageError as error:
            self._problem(f"{error} ({self._report.samples:,} samples before that were read)")
            return
        self._check_samples()
        expected = to_index(samples)
        if index is not None and index != expected:
            self._problem(_first_difference(index, expected), self._index_name)

    def _plain(self, file: BinaryIO) -> Iterator[Member]:
        """Yield the tar's files; a header that is not that of a plain USTAR file is a problem."""
        offset = 0
        for member in scan(file, "not a whole tar", remedy="prepare the dataset again in a new folder"):
            file.seek(member.offset - BLOCK)
            header = file.read(BLOCK)
            if member.offset - BLOCK != offset:
                what = f"behind a PAX, GNU or folder header at offset {offset:,}"
                self._member_problem(member.name, what)
            elif (header[_KIND], header[_MAGIC]) != _PLAIN:
                what = f"its header at offset {offset:,} is not USTAR's for a plain file"
                self._member_problem(member.name, what)
            yield member
            offset = member.end

    def _check_sample(self, file: BinaryIO, key: str, members: list[Member]) -> None:
        """Check the members of one key."""
        report = self._report
        report.samples += 1
        hashed = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        report.keys.append(int.from_bytes(hashed, "little"))
        report.headers.append(members[0].offset - BLOCK)
        found = [member.name for member in members]
        if found != [f"{key}.jpg", f"{key}.cls"] or not all(map(_MEMBER.fullmatch, found)):
            what = f"its members are {', '.join(map(_shown, found))}; expected KEY.jpg, KEY.cls"
            self._member_problem(key, what)
        for name, offset, size in members:
            file.seek(offset)
            self._check_content(name, name[-4:], file.read(size))

    def _check_indexed(self, file: BinaryIO, index: bytes) -> None:
        """Check every sample that the index of an adopted tar lists."""
        try:
            samples = parse_index(index)
        except ValueError as error:
            self._problem(f"not a complete {INDEX_VERSION} index: {error}", self._index_name)
            return
        for number, sample in enumerate(samples, 1):
            self._report.samples = number
            if sorted(sample) != ["cls", "jpg"]:
                name = next((member.name for member in sample.values()), f"sample {number}")
                what = f"the index lists {', '.join(sample) or 'nothing'} for it; expected jpg, cls"
                self._member_problem(name, what)
            for extension, (name, offset, size) in sample.items():
                file.seek(max(offset, 0))
                data = file.read(max(size, 0))
                if offset < 0 or size <= 0 or len(data) != size:
                    what = f"the index lists {size} bytes at {offset:,}, which are not in the tar"
                    self._member_problem(name, what)
                else:
                    self._check_content(name, f".{extension}", data)
            count_image()
        self._check_samples()

    def _check_content(self, name: str, suffix: str, data: bytes) -> None:
        """Check the content of an image or a label."""
        problem_of = {".jpg": self._image_problem, ".cls": self._label_problem}.get(suffix)
        if problem_of and (what := problem_of(data)):
            self._member_problem(name, what)

    def _label_problem(self, data: bytes) -> str:
        """Return the problem of a label, or "" after counting it."""
        width, classes = self._manifest.label_width, len(self._manifest.classes)
        digits = data
        if self._manifest.adopted:
            found = re.search(rb"[0-9]{1,%d}\Z" % width, data)
            if not found:
                return "the bytes that the index points to do not end with a label"
            digits = found[0]
        elif len(data) != width or not data.isdigit():
            return f"the label is '{_shown(data.decode('latin-1'))}'; expected {width} digits"
        if int(digits) >= classes:
            return f"the label is {int(digits)}, but there are {classes} classes"
        self._report.labels.add(int(digits))
        return ""

    def _image_problem(self, data: bytes) -> str:
        """Return the problem of an image, or "" after counting its pixels.

        An image of the shard writer must have its size and colors, and decode without repairs. One that
        another tool stored may have any format that decodes.
        """
        image, adopted, report, what = self._manifest.image, self._manifest.adopted, self._report, ""
        if not adopted:
            try:
                height, width, *stored = simplejpeg.decode_jpeg_header(data)
            except (ValueError, KeyError) as error:  # KeyError: a chroma subsampling unknown to simplejpeg
                return f"not a JPEG as the shard writer stores it: {error}"
            report.pixels += height * width
            what = _wrong_size(height, width, image) or _wrong_colors(stored, image)
        if what or not self._decode:
            return what
        try:
            decoded = decode(data, _pixel_limit(self._manifest), keep=image.mode == "original")
        except DecodeError as error:
            return f"does not decode: {error}"
        if adopted:
            height, width = decoded.shape
            report.pixels += height * width
            return _wrong_size(height, width, image)
        return f"decodes only after a repair: {decoded.repair}" if decoded.repair else ""


def _pixel_limit(manifest: Manifest) -> float:
    """Return the megapixels above which preparation stored no image.

    Only images of their original size need the limit: other images have a fixed size, which is checked.
    """
    limit = manifest.settings.get("max_megapixels") if manifest.image.mode == "original" else None
    return float(limit) if isinstance(limit, int | float) else LARGEST


def _shown(text: str) -> str:
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


def _first_difference(found: bytes, expected: bytes) -> str:
    """Describe the first line in which an index differs from the one that the tar's headers give."""
    lines, right = (index.decode("latin-1").split("\n") for index in (found, expected))
    pairs = enumerate(zip(lines, right, strict=False))
    number = next((n for n, (a, b) in pairs if a != b), min(len(lines), len(right)))
    here, there = (f"'{_shown(t[number])}'" if number < len(t) else "missing" for t in (lines, right))
    return f"not the tar's index: line {number + 1} is {here}; the tar gives {there}"
