"""`LocalStore`: a folder on a file system of this machine."""

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import FileIO
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from pipeline.errors import UsageError
from pipeline.host import refuse_too_many_open_files
from pipeline.storage.atomic import make_folder, remove_leftovers, write_bytes
from pipeline.storage.base import ByteRange, File, Store


class LocalStore(Store):
    """A folder on a local or mounted file system."""

    @cached_property
    def local(self) -> Path:
        """Path of the folder."""
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

        def add(prefix: str, above: frozenset[str]) -> None:
            real = os.path.realpath(self.local / prefix)
            if real in above:  # a symbolic link to a folder above
                return
            with os.scandir(self.local / prefix) as entries:
                found = sorted(entries, key=lambda e: e.name)
            for entry in found:
                path = prefix + entry.name
                if _is_dead(entry):
                    files.append(File(path, -1))
                elif entry.is_dir():
                    folders.append(path)
                    if not entry.name.startswith("."):
                        add(f"{path}/", above | {real})
                elif stat.S_ISREG((status := entry.stat()).st_mode):  # reading a named pipe would never end
                    files.append(File(path, status.st_size))

        try:
            add(f"{folder}/" if folder else "", frozenset())
        except OSError as error:
            raise _unreadable(error) from error
        return files, folders

    @override
    def size(self, name: str) -> int:
        return (self.local / name).stat().st_size

    @override
    def read(self, span: ByteRange) -> bytes:
        with self.open(span.path) as file:
            if span.offset:
                file.seek(span.offset)
            data = file.read() if span.size is None else file.read(span.size)
        if span.size is not None and len(data) != span.size:
            raise OSError(0, f"{len(data)} of {span.size} bytes at offset {span.offset}", span.path)
        return data

    @override
    def read_many(self, spans: Sequence[ByteRange]) -> Iterator[bytes | OSError]:
        # Without buffers, and opened once for neighbors: a small range takes a quarter of the time.
        for name, group in groupby(spans, key=lambda span: span.path):
            wanted = list(group)
            try:
                file = (self.local / name).open("rb", buffering=0)
            except OSError as error:
                refuse_too_many_open_files(error)
                yield from (error for _ in wanted)
                continue
            with file:
                yield from _read(file, wanted)

    @override
    def open(self, name: str, read_ahead: bool = True) -> BinaryIO:
        try:
            return (self.local / name).open("rb")
        except OSError as error:
            refuse_too_many_open_files(error)
            raise

    @override
    def write(self, name: str, data: bytes) -> None:
        path = self.local / name
        make_folder(path.parent)
        write_bytes(path, data)

    @override
    @contextmanager
    def as_local_path(self, name: str) -> Iterator[Path]:
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
        """Delete temporary files that killed processes left, at any depth."""
        for folder, _, _ in os.walk(self.local):
            remove_leftovers(Path(folder))


def _read(file: FileIO, spans: Sequence[ByteRange]) -> Iterator[bytes | OSError]:
    """Read ranges of an open file; yield the error of one that cannot be read."""
    at = 0  # so that pipes, which cannot be sought, are read too
    for span in spans:
        try:
            if span.offset != at:
                file.seek(span.offset)
            data = file.readall() if span.size is None else b""
            while span.size is not None and (more := file.read(span.size - len(data))):
                data = data + more if data else more
        except OSError as error:
            at = -1
            yield error
            continue
        at = span.offset + len(data)
        if span.size is not None and len(data) != span.size:
            yield OSError(0, f"{len(data)} of {span.size} bytes at offset {span.offset}", span.path)
        else:
            yield data


def _is_dead(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link to nowhere, in a circle, or to where this user may not look."""
    if not entry.is_symlink():
        return False
    try:
        entry.stat()
    except OSError:
        return True
    return False


def _unreadable(error: OSError) -> UsageError:
    refuse_too_many_open_files(error)
    return UsageError(f"cannot read {error.filename}: {error.strerror}; restore it or check its permissions")
