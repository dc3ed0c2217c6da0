"""Write files atomically: write to a temporary name, fsync, rename."""

import errno
import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError, UsageError
from pipeline.host import refuse_too_many_open_files

PARTIAL = ".writing-"
"""Prefix of the names of unfinished files."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for binary writing that appears at `path` only when it is complete.

    The bytes go to a temporary file in the same folder. It is fsynced and renamed when the block ends, and
    removed when the block raises. A process that is killed inside the block leaves only the temporary file,
    which `remove_leftovers` deletes.

    Raises:
        RunError: the folder cannot be written or the disk is full.
    """
    # The name is random because processes on several hosts may write the same file at once.
    temporary = path.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{path.name}")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _fsync_folder(path.parent)
        finally:
            _discard(temporary)
    except OSError as error:
        refuse_too_many_open_files(error)
        remedy = "choose another path"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = f"free space or {remedy}, then run the same command again"
        raise RunError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically; see `atomic_write`."""
    with atomic_write(path) as file:
        file.write(data)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write `array` to `path` as a .npy file, atomically; see `atomic_write`."""
    buffer = io.BytesIO()  # on a full disk, NumPy's own error does not name the cause
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def make_folder(path: Path) -> None:
    """Create `path` and its parents.

    Raises:
        UsageError: it or a parent is a link to something that does not exist.
        RunError: a parent is a file or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse_dead_link(path)
        raise RunError(f"cannot create the folder {path}: {error.strerror}; choose another path") from error


def refuse_dead_link(path: Path) -> None:
    """Check that neither `path` nor a folder above it is a link to something that does not exist.

    Raises:
        UsageError: one is.
    """
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            raise UsageError(
                f"{link}: is a dead link to {link.readlink()}; make what it leads to, or remove it"
            )


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that killed processes left directly in `folder`."""
    for path in folder.glob(f"{PARTIAL}*"):
        _discard(path)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _discard(temporary: Path) -> None:
    """Delete a temporary file, if it is there and can be deleted: one that stays does no harm."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    """Make a rename durable, where the file system can: some network file systems sync no folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
