"""A folder on this machine or in a bucket, behind the few operations that preparation needs.

Local files appear by write, fsync and rename; objects by one atomic upload (`pipeline.storage.remote`).
"""

import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from typing_extensions import override

from pipeline.errors import UsageError
from pipeline.storage.atomic import make_folder, remove_leftovers, write_bytes


class File(NamedTuple):
    """A listed file: its path below the store's root (with /) and its size in bytes."""

    path: str
    size: int


class Span(NamedTuple):
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
        return open_store, (self.url,)

    @property
    def local(self) -> Path | None:
        """The folder's path where it is on this machine, else None."""
        return None

    def place(self, name: str) -> str:
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
    def read(self, span: Span) -> bytes:
        """Read a span.

        Raises:
            OSError: the file is missing, unreadable or shorter.
        """

    def read_many(self, spans: Sequence[Span]) -> Iterator[bytes | OSError]:
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
    def fetched(self, name: str) -> Any:
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


def open_store(url: "str | Path | Store") -> Store:
    """Open a folder by its path or its PROTOCOL://BUCKET/PREFIX; an open one is given back.

    Raises:
        UsageError: a protocol that fsspec does not know, or whose package is not installed.
    """
    if isinstance(url, Store):
        return url
    text = str(url)
    if "://" not in text:
        return LocalStore(text)
    protocol, _, rest = text.partition("://")
    if protocol == "file":
        return LocalStore("/" + rest.lstrip("/"))
    from pipeline.storage.remote import BucketStore

    return BucketStore(text)


class LocalStore(Store):
    """A folder on this machine, or on a file system that it mounts."""

    @cached_property
    def local(self) -> Path:
        """The folder."""
        return Path(self.url)

    @override
    def is_folder(self, name: str = "") -> bool:
        return (self.local / name).is_dir()

    @override
    def is_file(self, name: str) -> bool:
        return (self.local / name).is_file()

    @override
    def names(self, folder: str = "") -> set[str]:
        try:
            return {path.name for path in (self.local / folder).iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError as error:
            raise _unreadable(error) from error

    @override
    def walk(self, folder: str = "") -> tuple[list[File], list[str]]:
        files: list[File] = []
        folders: list[str] = []
        self._walk(self.local / folder, f"{folder}/" if folder else "", frozenset(), files, folders)
        return files, folders

    def _walk(
        self, folder: Path, prefix: str, above: frozenset[str], files: list[File], folders: list[str]
    ) -> None:
        real = os.path.realpath(folder)
        if real in above:  # a link back up
            return
        try:
            with os.scandir(folder) as entries:
                visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
            for entry in visible:
                path = prefix + entry.name
                if entry.is_dir():
                    folders.append(path)
                    self._walk(Path(entry.path), path + "/", above | {real}, files, folders)
                elif stat.S_ISREG((status := entry.stat()).st_mode):  # a pipe would never end
                    files.append(File(path, status.st_size))
        except OSError as error:
            raise _unreadable(error) from error

    @override
    def size(self, name: str) -> int:
        return (self.local / name).stat().st_size

    @override
    def read(self, span: Span) -> bytes:
        with (self.local / span.path).open("rb") as file:
            if span.offset:
                file.seek(span.offset)
            data = file.read() if span.size is None else file.read(span.size)
        if span.size is not None and len(data) != span.size:
            raise OSError(0, f"{len(data)} of {span.size} bytes at offset {span.offset}", span.path)
        return data

    @override
    def open(self, name: str) -> BinaryIO:
        return (self.local / name).open("rb")

    @override
    def write(self, name: str, data: bytes) -> None:
        path = self.local / name
        make_folder(path.parent)
        write_bytes(path, data)

    @override
    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        yield self.local / name

    @override
    def copy_to(self, name: str, path: Path) -> None:
        shutil.copyfile(self.local / name, path)

    @override
    def remove(self, name: str) -> None:
        path = self.local / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Delete what killed writers left under temporary names, at any depth."""
        for folder, _, _ in os.walk(self.local):
            remove_leftovers(Path(folder))


def _unreadable(error: OSError) -> UsageError:
    return UsageError(f"cannot read {error.filename}: {error.strerror}; restore it or check its permissions")
