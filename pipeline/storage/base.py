"""`Store`: the interface to a dataset's or source's folder, on this machine or in a bucket.

Writes are atomic: local files are written, fsynced and renamed; objects appear by one
atomic upload (`pipeline.storage.remote`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple


class File(NamedTuple):
    """A listed file: its path relative to the store's root, with /, and its size in bytes."""

    path: str
    size: int


class ByteRange(NamedTuple):
    """A range of bytes in a file.

    Attributes:
        path: path of the file relative to the store's root, with /.
        offset: first byte.
        size: number of bytes, or None for all up to the end of the file.
    """

    path: str
    offset: int = 0
    size: int | None = None


def leads_out(name: str) -> bool:
    """Whether the name of a file, read from a file, could lead out of the store: absolute, or with "..".

    Names that our own code never writes, with an empty part, "." or a NUL, count too.
    """
    return "\0" in name or any(part in ("", ".", "..") for part in name.split("/"))


class Store(ABC):
    """A folder that files are read from and written to. Names of files are relative to it and use /.

    A store is pickled as its URL alone, so each worker process opens connections of its own.

    Attributes:
        url: path, or PROTOCOL://BUCKET/PREFIX.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url,)

    @property
    def local(self) -> Path | None:
        """Path of the folder if it is on this machine, else None."""
        return None

    def url_of(self, name: str) -> str:
        """Return the full path or URL of `name`."""
        return f"{self.url.rstrip('/')}/{name}"

    @abstractmethod
    def is_folder(self, name: str = "") -> bool:
        """Return whether the folder `name` exists; in a bucket, whether any object lies below it."""

    @abstractmethod
    def is_file(self, name: str) -> bool:
        """Return whether the file `name` exists."""

    @abstractmethod
    def names(self, folder: str = "") -> set[str]:
        """Return the names of files and folders directly in `folder`; empty if it does not exist."""

    @abstractmethod
    def walk(self, folder: str = "") -> tuple[list[File], list[str]]:
        """List all files and all folders at any depth below `folder`.

        Folders with a leading dot are listed, but not what is in them. Symbolic links are followed, but not
        in circles; a link to nowhere is a file of size -1.

        Returns:
            The files and the folders, with paths relative to the store's root.

        Raises:
            UsageError: a folder or file cannot be read.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            FileNotFoundError: the file does not exist.
        """

    @abstractmethod
    def read(self, span: ByteRange) -> bytes:
        """Read one byte range.

        Raises:
            OSError: the file is missing, unreadable, or ends before the range does.
        """

    def read_many(self, spans: Sequence[ByteRange]) -> Iterator[bytes | OSError]:
        """Yield the bytes of each range in order, or its OSError where it cannot be read."""
        for span in spans:
            try:
                yield self.read(span)
            except OSError as error:
                yield error

    @abstractmethod
    def open(self, name: str, read_ahead: bool = True) -> BinaryIO:
        """Open a file for binary reading and seeking.

        Args:
            name: the file.
            read_ahead: in a bucket, read blocks ahead, which pays where a tar is scanned from front to back;
                False requests exactly the bytes of each read.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a small file atomically; create its folders.

        Raises:
            RunError: the file cannot be written.
        """

    @abstractmethod
    def as_local_path(self, name: str) -> Any:
        """Context manager: yield a local path with the content of `name`: the file or a temporary copy."""

    @abstractmethod
    def copy_to(self, name: str, path: Path) -> None:
        """Copy the file `name` to the local `path`.

        Raises:
            OSError: the file is missing or unreadable, or `path` cannot be written.
            RunError: the bucket cannot be reached.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file, or a folder with everything in it; do nothing if it does not exist."""
