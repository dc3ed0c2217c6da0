"""Where the members of a tar lie: a strict walk over its headers that reads no data."""

import io
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Self

from pipeline.errors import UsageError

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_OCTAL = re.compile(rb"[0-7]+")
_EXTENSIONS = {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
}
# Python holds a name or a set of attributes in memory before anything is known about it.
_LONGEST_EXTENSION = 2**20
# Writers fill up to a record: 10 kB by default, 1 MiB with `tar -b 2048`. What is longer is a hole that an
# unfinished download has left.
_LONGEST_FILLING = 2**20


class Member(NamedTuple):
    """A regular file in a tar: its name, where its data starts in the file, and how many bytes it has."""

    name: str
    offset: int
    size: int


class _Header(tarfile.TarInfo):
    """A header, refused where believing it would take memory, lead backwards or need a sparse map."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENSIONS and header.size > _LONGEST_EXTENSION):
            raise tarfile.HeaderError(f"a size of {header.size:,} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.HeaderError(f"{header.name} is sparse")
        return header


def scan(
    file: BinaryIO, place: str, start: int = 0, end: int | None = None, remedy: str = "download it again"
) -> Iterator[Member]:
    """List the regular files of a tar, which may itself lie inside `file`.

    Python's own iteration ends in silence at a damaged header or at the end of a truncated file; here
    either is an error, and so is whatever follows the tar's end mark. Names are as stored, but without a
    leading `./`; GNU's and PAX's long names count. Folders are passed over.

    Args:
        file: seekable. It may be read between two members: its position is set before each header.
        place: what to call the file in messages.
        start: where the tar begins in the file; offsets count from the file's start.
        end: where it ends; None means the file's end.
        remedy: what to do with a damaged file.

    Raises:
        UsageError: a truncated or damaged tar, or a member that is a link, sparse or a device.
    """
    if end is None:
        end = file.seek(0, io.SEEK_END)
    with tarfile.open(fileobj=io.BytesIO(_ZEROS)) as reader:  # an empty one, for its settings
        reader.fileobj = file
        while True:
            if start + _BLOCK > end:
                raise UsageError(f"{place}: truncated at offset {end:,}: the end mark is missing; {remedy}")
            file.seek(start)
            block = file.read(_BLOCK)
            if block == _ZEROS:
                break
            member = _plain(block, start + _BLOCK) or _any(reader, file, place, start, remedy)
            name, offset, size = member
            if offset + size > end:
                raise UsageError(
                    f"{place}: truncated at offset {end:,}: member {name} needs {offset + size - end:,} "
                    f"bytes more; {remedy}"
                )
            start = offset + -(-size // _BLOCK) * _BLOCK
            if not name.endswith("/"):
                yield member
    _check_filling(file, place, start, end, remedy)


def _plain(block: bytes, offset: int) -> Member | None:
    """The member whose header is `block`, if it is a plain file with a short name, as nearly all are.

    Reads only what it needs, which makes a million of them quick: 5 µs each where `tarfile` takes 25.
    """
    if block[156:157] != tarfile.REGTYPE or block[345:346] != b"\0":
        return None
    size, checksum = block[124:136].strip(b"\0 "), block[148:156].strip(b"\0 ")
    if not (_OCTAL.fullmatch(size) and _OCTAL.fullmatch(checksum)):
        return None
    if sum(block) - sum(block[148:156]) + 256 != int(checksum, 8):
        return None
    name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return Member(name.removeprefix("./"), offset, int(size, 8)) if not name.endswith("/") else None


def _any(reader: tarfile.TarFile, file: BinaryIO, place: str, start: int, remedy: str) -> Member:
    """The member at `start`, its long names applied; a folder's name ends in /."""
    file.seek(start)
    try:
        header = _Header.fromtarfile(reader)
    # What Python's parser raises on bytes that only begin like a header.
    except (tarfile.HeaderError, ValueError, IndexError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{place}: damaged at offset {start:,}: no tar header ({reason}); {remedy}"
        ) from error
    name, offset = header.name.removeprefix("./"), header.offset_data
    if header.isdir():
        return Member(f"{name}/", offset, 0)
    if header.size < 0 or not header.isreg() or header.issparse():
        raise UsageError(
            f"{place}: member {name} at offset {start:,} is a link, sparse or a device; make the tar again "
            "with plain files (tar --dereference --hard-dereference)"
        )
    return Member(name, offset, header.size)


def _check_filling(file: BinaryIO, place: str, start: int, end: int, remedy: str) -> None:
    """A hole in a half-finished download looks like an end mark, and so does a tar that was appended to."""
    file.seek(start)
    filling = file.read(min(end - start, _LONGEST_FILLING + 1))
    if filling.strip(b"\0"):
        at = start + len(filling) - len(filling.lstrip(b"\0"))
        raise UsageError(
            f"{place}: damaged: data at offset {at:,}, after the end mark at {start:,}; {remedy}"
        )
    if end - start > _LONGEST_FILLING:
        raise UsageError(
            f"{place}: damaged at offset {start:,}: {end - start:,} bytes from there to the end are missing "
            f"or zero; {remedy}"
        )
