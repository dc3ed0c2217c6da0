"""A folder on this machine or in a bucket, behind the few operations that preparation needs.

Local files appear by write, fsync and rename; objects by one atomic upload (`pipeline.storage.remote`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple


class File(NamedTuple):
    """A listed file: its path below the store's root (with /) and its size in bytes."""

    path: str
    size: int


class ByteRange(NamedTuple):
    """Bytes to read: a file below the root, where they start, and how many (None: to its end)."""

    path: str
    offset: int = 0
    size: int | None = None


class Store(ABC):
    """A folder, by its `url`: a path, or PROTOCOL://BUCKET/PREFIX. Names below it use /.

    It pickles as its address alone, so workers open connections of their own.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url,)

    @property
    def local(self) -> Path | None:
        """The folder's path where it is on this machine, else None."""
        return None

    def url_of(self, name: str) -> str:
        """Where `name` lies, for messages."""
        return f"{self.url.rstrip('/')}/{name}"

    @abstractmethod
    def is_folder(self, name: str = "") -> bool:
        """Whether there is a folder of that name; in a bucket, whether anything lies below it."""

    @abstractmethod
    def is_file(self, name: str) -> bool:
        """Whether there is a file of that name."""

    @abstractmethod
    def names(self, folder: str = "") -> set[str]:
        """Names of the files and folders directly in `folder`; empty where there is none."""

    @abstractmethod
    def walk(self, folder: str = "") -> tuple[list[File], list[str]]:
        """Every visible file at any depth below `folder`, and every folder, as paths below the root.

        Hidden names (with a leading dot) are left out, links followed, but not in circles.

        Raises:
            UsageError: a folder or file that cannot be read.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def read(self, span: ByteRange) -> bytes:
        """Read a span.

        Raises:
            OSError: the file is missing, unreadable or shorter.
        """

    def read_many(self, spans: Sequence[ByteRange]) -> Iterator[bytes | OSError]:
        """Read spans in order; an unreadable one gives its error in its place."""
        for span in spans:
            try:
                yield self.read(span)
            except OSError as error:
                yield error

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for reading and seeking."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all; folders are made.

        Raises:
            RunError: the place cannot be written.
        """

    @abstractmethod
    def as_local_path(self, name: str) -> Any:
        """Context of a local path to `name`'s content: itself, or a temporary download."""

    @abstractmethod
    def copy_to(self, name: str, path: Path) -> None:
        """Copy a file's content to a local `path`.

        Raises:
            OSError: the file is missing, or either cannot be read or written.
            RunError: the bucket cannot be reached.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing where it is gone."""
