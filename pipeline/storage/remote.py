"""`RemoteStore`: a prefix in a bucket, through fsspec: `s3://…`, `gs://…`, or any other protocol it knows.

Credentials and endpoints come from the environment variables and files that the cloud's own tools read. S3
and Google Cloud Storage write objects atomically. Each stored object is compared with the uploaded file.
"""

import base64
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from typing_extensions import override

from pipeline.errors import RunError, ToolkitError, UsageError
from pipeline.storage.atomic import sha256_of
from pipeline.storage.base import ByteRange, File, Store

# protocol → the extra of this package that installs its client library
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_UPLOAD_TRIES = 3
_BLOCK = 2**24  # bytes that fsspec reads ahead
_BUFFER = 2**16  # bytes


class RemoteStore(Store):
    """A prefix in a bucket.

    Besides the errors that `Store` documents, every operation may raise UsageError (unknown protocol, missing
    package, no credentials, access denied) or RunError (network, server), with a message of one line.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._clients: dict[int, Any] = {}

    @property
    def _fs(self) -> Any:
        """The client of this process: one that was forked cannot use its parent's threads and connections."""
        if os.getpid() not in self._clients:
            self._clients = {os.getpid(): self._connect()}
        return self._clients[os.getpid()]

    def _connect(self) -> Any:
        import fsspec

        protocol = self.url.partition("://")[0]
        try:
            # Files appear while a job runs, so fsspec must not cache listings.
            return fsspec.filesystem(protocol, use_listings_cache=False)
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            remedy = f"pip install 'alexnet-toolkit[{extra}]'" if extra else f"install it ({error})"
            raise UsageError(f"{self.url}: reading {protocol}:// needs another package; {remedy}") from error
        except ValueError as error:
            raise UsageError(f"{self.url}: unknown protocol ({error}); use s3:// or gs://") from error

    @cached_property
    def _root(self) -> str:
        with self.errors("open"):
            return str(self._fs._strip_protocol(self.url)).rstrip("/")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _kind(self, name: str) -> str | None:
        """Return "file", "directory" or None. fsspec's own `isfile` and `isdir` return False on any error."""
        with self.errors("look up", name):
            try:
                return str(self._fs.info(self._at(name))["type"])
            except FileNotFoundError:
                return None

    @override
    def is_folder(self, name: str = "") -> bool:
        return self._kind(name) == "directory"

    @override
    def is_file(self, name: str) -> bool:
        return self._kind(name) == "file"

    @override
    def names(self, folder: str = "") -> set[str]:
        at = self._at(folder)
        with self.errors("list", folder):
            try:
                found = self._fs.ls(at, detail=False)
            except FileNotFoundError:
                return set()
        return {path.rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != at}

    @override
    def walk(self, folder: str = "") -> tuple[list[File], list[str]]:
        with self.errors("list", folder):
            found = self._fs.find(self._at(folder), withdirs=True, detail=True)
        files, folders = [], []
        for path, details in sorted(found.items()):
            name = path[len(self._root) :].strip("/")
            if name in ("", folder) or "/." in f"/{name.rpartition('/')[0]}":
                continue  # what is in a folder with a leading dot
            if details["type"] == "directory":
                folders.append(name)
            elif not path.endswith("/"):
                files.append(File(name, int(details["size"])))
        return files, folders

    @override
    def size(self, name: str) -> int:
        with self.errors("look up", name):
            return int(self._fs.info(self._at(name))["size"])

    @override
    def read(self, span: ByteRange) -> bytes:
        data = next(self.read_many([span]))
        if isinstance(data, OSError):
            raise data
        return data

    @override
    def read_many(self, spans: Sequence[ByteRange]) -> Iterator[bytes | OSError]:
        wanted = [span for span in spans if span.size != 0]  # servers refuse empty ranges
        starts = [span.offset or None for span in wanted]
        ends = [None if span.size is None else span.offset + span.size for span in wanted]
        with self.errors("read"):
            paths = [self._at(span.path) for span in wanted]
            found = iter(self._fs.cat_ranges(paths, starts, ends, on_error="return"))
        for span in spans:
            data = next(found) if span.size != 0 else b""
            if isinstance(data, FileNotFoundError):
                yield FileNotFoundError(2, "No such file or directory", span.path)
            elif isinstance(data, Exception):
                with self.errors("read", span.path):
                    raise data
            elif span.size is not None and len(data) != span.size:
                yield OSError(0, f"{len(data)} of {span.size} bytes at offset {span.offset}", span.path)
            else:
                yield bytes(data)

    @override
    def open(self, name: str, read_ahead: bool = True) -> BinaryIO:
        with self.errors("open", name):
            cache = "readahead" if read_ahead else "none"
            file = self._fs.open(self._at(name), "rb", block_size=_BLOCK, cache_type=cache)
        guarded = _Guarded(self, name, file)
        return io.BufferedReader(guarded, _BUFFER) if read_ahead else cast(BinaryIO, guarded)

    @override
    def write(self, name: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "data"
            path.write_bytes(data)
            self.upload(path, name)

    def upload(self, file: Path, name: str) -> None:
        """Upload a finished local file as `name`, compare checksums, delete the local file.

        An upload is atomic. It is tried up to three times.

        Raises:
            RunError: the upload failed, or the stored object differs from the file after three tries.
        """
        for _ in range(_UPLOAD_TRIES):
            with self.errors("write", name):
                self._fs.put_file(str(file), self._at(name))
                arrived = self._arrived(file, name)
            if arrived:
                with suppress(OSError):
                    file.unlink()
                return
        raise RunError(
            f"{self.url_of(name)}: the stored object differed from the local file after each of "
            f"{_UPLOAD_TRIES} uploads; run the same command again"
        )

    @override
    @contextmanager
    def as_local_path(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / name.rpartition("/")[2]
            self.copy_to(name, path)
            yield path

    @override
    def copy_to(self, name: str, path: Path) -> None:
        with self.errors("download", name):
            self._fs.get_file(self._at(name), str(path))

    @override
    def remove(self, name: str) -> None:
        with self.errors("delete", name):
            if self._fs.exists(self._at(name)):
                self._fs.rm(self._at(name), recursive=True)

    def _arrived(self, file: Path, name: str) -> bool:
        """Return whether the stored object has the size and checksum of the local file."""
        details = self._fs.info(self._at(name))
        if int(details["size"]) != file.stat().st_size:
            return False
        with file.open("rb") as data:
            md5 = hashlib.file_digest(data, lambda: hashlib.md5(usedforsecurity=False))
        if str(details.get("ETag", "")).strip('"') == md5.hexdigest():  # of S3
            return True
        if str(details.get("md5Hash", "")) == base64.b64encode(md5.digest()).decode():  # of Google's
            return True
        # S3's ETag is the MD5 only of objects that came in one part; without one, download the object again.
        with self.as_local_path(name) as stored:
            return sha256_of(stored) == sha256_of(file)

    @contextmanager
    def errors(self, doing: str, name: str = "") -> Iterator[None]:
        """Context manager: turn whatever the client libraries raise into an error of one line.

        Args:
            doing: verb for the message, such as "read" or "write".
            name: file or folder for the message; "" for the store itself.

        Raises:
            UsageError: no credentials, access denied, or, with "write", no such bucket.
            RunError: any other error.
            FileNotFoundError: passed on unless `doing` is "write", for the caller to explain.
        """
        url = self.url_of(name) if name else self.url
        try:
            yield
        except ToolkitError:
            raise
        except FileNotFoundError as error:
            if doing == "write":
                raise UsageError(f"cannot write {url}: {error}; create the bucket first") from error
            raise
        except Exception as error:
            kind = type(error).__name__
            text = " ".join(str(error).split()) or kind
            failure: type[ToolkitError] = UsageError
            if "Credential" in kind or "credential" in text:
                reason = f"no credentials ({text}); set them as for the cloud's own tools, such as in "
                reason += "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            elif isinstance(error, PermissionError) or "Forbidden" in text or "Access Denied" in text:
                reason = f"access denied ({text}); check the credentials and the bucket"
            else:
                failure = RunError
                reason = f"{kind}: {text}; check the network and run the same command again"
            raise failure(f"cannot {doing} {url}: {reason}") from error


class _Guarded(io.RawIOBase):
    """A raw file over an open object: its reads, too, raise errors of one line."""

    def __init__(self, store: RemoteStore, name: str, file: Any) -> None:
        self._store, self._name, self._file = store, name, file

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        with self._store.errors("read", self._name):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    @override
    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    @override
    def close(self) -> None:
        self._file.close()
        super().close()
