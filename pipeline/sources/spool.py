"""Spooling: unpack containers without cheap random access, once, into flat files that allow it.

The images of a Parquet file, or all members of a zip, go one after the other into NUMBER.bin, and a null as
an image of 0 bytes; a compressed tar goes there decompressed. NUMBER.starts, written last, is a table of
int64: the byte offset of each image (of a tar, only 0), and the size of NUMBER.bin, without which the
container does not count as spooled. This needs about as much space as the images.
"""

import fcntl
import os
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from pipeline.errors import UsageError
from pipeline.sources.base import Container
from pipeline.sources.opening import PACKED, PARQUET, ZIP, reading, unpacked
from pipeline.storage.atomic import atomic_write, make_folder, write_bytes
from pipeline.storage.base import ByteRange, Store

_CHUNK = 2**20
# Rows held in memory at a time; their images have 0.1 to 10 MB each.
_ROWS = 16
_START = np.dtype(np.int64)


def needs_spool(container: Container) -> bool:
    """Whether a container must be spooled before random access: Parquet files, zips and compressed tars."""
    return container.path.lower().endswith((PARQUET, ZIP, *PACKED))


def spool(store: Store, number: int, container: Container, folder: Path) -> None:
    """Unpack a container into `folder`, unless its files are there already.

    If two processes of one machine spool the same container, the second waits for the first.

    Args:
        store: The source.
        number: Index of the container in the source's list; the spooled files are named by it.
        container: The container as it was listed.
        folder: Folder of the spooled files; created if missing.

    Raises:
        UsageError: The container is damaged, or its size differs from the listed one.
        RunError: The container cannot be read, or the folder cannot be written.
    """
    if _is_finished(folder, number):
        return
    make_folder(folder)
    with _locked(folder / f"{number:05d}.lock"):
        if not _is_finished(folder, number):
            _check_unchanged(store, container)
            images, table = _files(folder, number)
            starts = array("q", [0])
            with atomic_write(images) as file:
                for data in _rows(store, container) if _has_rows(container) else _chunks(store, container):
                    file.write(data)
                    starts.append(starts[-1] + len(data))
            write_bytes(table, (starts if _has_rows(container) else array("q", [0, starts[-1]])).tobytes())


def spooled_span(folder: Path, number: int, container: Container, offset: int, size: int) -> ByteRange:
    """Return the byte range of a sample of a spooled container, in a file below `folder`.

    Args:
        folder: Folder of the spooled files.
        number: Index of the container in the source's list.
        container: The container as it was listed.
        offset: Row of the sample in a Parquet file or zip; byte offset of its data in a tar.
        size: Size of the sample in bytes; ignored for Parquet files and zips, whose table holds it.

    Raises:
        UsageError: The Parquet file or zip has no such row.
    """
    images, table = _files(folder, number)
    if not _has_rows(container):
        return ByteRange(images.name, offset, size)
    with table.open("rb") as file:  # not kept open: there may be thousands
        file.seek(offset * _START.itemsize)
        found = np.frombuffer(file.read(2 * _START.itemsize), _START)
    if len(found) < 2:
        rows = table.stat().st_size // _START.itemsize - 1
        raise UsageError(
            f"{container.path}: row {offset:,} was listed, but the file has {rows:,} rows; it has changed "
            "since: restore it, or start again in another folder"
        )
    start, end = map(int, found)
    return ByteRange(images.name, start, end - start)


def _has_rows(container: Container) -> bool:
    return container.path.lower().endswith((PARQUET, ZIP))


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    """Return the paths of a container's images and of its table."""
    return folder / f"{number:05d}.bin", folder / f"{number:05d}.starts"


def _is_finished(folder: Path, number: int) -> bool:
    """Whether a container is spooled: the table's last number is the size of the other file."""
    images, table = _files(folder, number)
    try:
        with table.open("rb") as file:
            file.seek(-_START.itemsize, os.SEEK_END)
            return int(np.frombuffer(file.read(), _START)[0]) == images.stat().st_size
    except OSError:  # a file is missing, or the table is empty
        return False


def _check_unchanged(store: Store, container: Container) -> None:
    with reading(store.url_of(container.path), "file"):
        size = store.size(container.path)
    if size != container.size:
        raise UsageError(
            f"{store.url_of(container.path)}: {size:,} bytes, but {container.size:,} when it was listed; it "
            "has changed since: restore it, or start again in another folder"
        )


def _rows(store: Store, container: Container) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a Parquet file's images in row order, or of a zip's members.

    It is a generator so that errors of writing the spooled file are not reported as damage of this one.
    """
    if container.path.lower().endswith(ZIP):
        url = store.url_of(container.path)
        with store.open(container.path, read_ahead=False) as file:
            with reading(url, "zip file", zipfile.BadZipFile, zlib.error, EOFError):
                archive = zipfile.ZipFile(file)
            for member in archive.infolist():
                with reading(url, "zip file", zipfile.BadZipFile, zlib.error, EOFError):
                    data = archive.read(member)
                yield data
        return
    from pipeline.sources.listers.parquet_file import columns_of, leaf, opened

    with opened(store, container, in_order=True) as parquet:
        image = columns_of(parquet.schema_arrow, store.url_of(container.path)).image
        for batch in parquet.iter_batches(_ROWS, columns=[image], use_threads=False):
            for value in leaf(batch, image):
                yield memoryview(value.as_buffer()) if value.is_valid else b""


def _chunks(store: Store, container: Container) -> Iterator[bytes]:
    with unpacked(store, container) as file:
        while data := file.read(_CHUNK):
            yield data


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive file lock, which the kernel releases if the process dies."""
    with ExitStack() as stack:
        # A file system without locks does no harm: two processes then write whole files of the same bytes.
        with suppress(OSError):
            fcntl.flock(stack.enter_context(path.open("w")), fcntl.LOCK_EX)
        yield
