"""Shards kept on a local disk while they are needed, and as long as there is room.

    CACHE/
      .lock                                   held while room is made
      3f2a…/train/train-000000.tar            a whole shard, its checksum compared with the manifest's
      3f2a…/train/train-000000.tar.lock       held by those who use it, together, or who delete it, alone
      3f2a…/train/train-000000.tar.fetch      held by the one who fetches it
      3f2a…/train/train-000000.tar.partial    being fetched, with room kept for it by a .reserved beside it

Processes of a host share one folder, jobs of different data sets too. The kernel drops a lock when its
process ends, however it ends, so nothing stays in use by the dead. A copy that has rotted is replaced under
those who use it: what they have open or mapped stays theirs.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipeline.dataset.manifest import Shard
from pipeline.errors import RunError
from pipeline.storage.atomic import make_folder, sha256_of
from pipeline.storage.base import Store

_TRIES = 3
_STREAMS = 4
_PARTIAL = ".partial"
# An empty file as long as the shard that is being fetched: what copies a shard begins with an empty file.
_RESERVED = ".reserved"
# As long as another loader may need for a segment, which it then lets go.
_WAIT_SECONDS = 900.0
_POLL_SECONDS = 0.05


@dataclass
class Cache:
    """Local copies of a dataset's shards.

    Attributes:
        folder: where, shared by all who name it.
        limit: bytes that it may hold, or None for as many as come.
        store: where the dataset lies.
        name: of the dataset's folder below `folder`: its fingerprint.
    """

    folder: Path
    limit: int | None
    store: Store
    name: str
    _proven: set[tuple[str, int]] = field(default_factory=set, repr=False)
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)

    def lease(self, shards: Sequence[Shard]) -> "Lease":
        """Fetch what is missing, check what this process has not checked yet, and keep all of it.

        Raises:
            RunError: the dataset cannot be read, a shard is not what the manifest says, no room.
        """
        with ThreadPoolExecutor(_STREAMS) as streams:
            futures = [streams.submit(self._hold, shard) for shard in shards]
            wait(futures, return_when=FIRST_EXCEPTION)
            begun = [future for future in futures if not future.cancel()]
        with ExitStack() as stack:
            for future in begun:
                if future.exception() is None:
                    stack.enter_context(future.result())
            for future in begun:
                future.result()  # the first error, with the other shards let go
            return Lease([str(self._path(shard)) for shard in shards], stack.pop_all())

    def stop(self) -> None:
        """Let those who wait or are about to fetch give up: what is fetched would not be used."""
        self._stopped.set()

    def _refuse_stopped(self) -> None:
        if self._stopped.is_set():
            raise RunError("the loader was closed while shards were fetched")

    def _path(self, shard: Shard) -> Path:
        return self.folder / self.name[:16] / shard.name

    def _hold(self, shard: Shard) -> IO[bytes]:
        """The shard's lock, held together with other users, with the shard in place."""
        self._refuse_stopped()
        path = self._path(shard)
        make_folder(path.parent)
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(_lock_file(path).open("ab"))
                fcntl.flock(lock, fcntl.LOCK_SH)  # from here on nobody deletes it
                if not self._is_good(path, shard):
                    with self._as_only_fetcher(path):
                        if not self._is_good(path, shard):
                            self._fetch(path, shard)
                os.utime(_lock_file(path))  # the least recently used go first
            except OSError as error:
                raise RunError(
                    f"{error.filename or path}: {error.strerror or error}, so that {path.name} cannot be "
                    f"kept in --cache {self.folder}; check that folder, or choose another"
                ) from error
            stack.pop_all()
            return lock

    @contextmanager
    def _as_only_fetcher(self, path: Path) -> Iterator[None]:
        with path.with_name(path.name + ".fetch").open("ab") as lock:
            while not _try_alone(lock):
                self._refuse_stopped()
                time.sleep(_POLL_SECONDS)
            yield

    def _is_good(self, path: Path, shard: Shard) -> bool:
        """Whether the shard is there; one that this process sees for the first time is read."""
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if (shard.name, changed) not in self._proven:
            if sha256_of(path) != shard.sha256:
                return False
            self._proven.add((shard.name, changed))
        return True

    def _fetch(self, path: Path, shard: Shard) -> None:
        """Bring the shard here, in the place of what is there."""
        here = path.stat().st_size if path.exists() else 0
        partial, reserved = (path.with_name(path.name + suffix) for suffix in (_PARTIAL, _RESERVED))
        try:
            for _ in range(_TRIES):
                _remove_both(partial, reserved)  # of an earlier try, or of a process that was killed
                self._reserve(reserved, max(shard.bytes - here, 0))
                self.store.copy_to(shard.name, partial)
                if sha256_of(partial) == shard.sha256:
                    with partial.open("rb") as file:
                        os.fsync(file.fileno())
                    partial.replace(path)
                    self._proven.add((shard.name, path.stat().st_mtime_ns))
                    return
        except OSError as error:
            raise RunError(
                f"cannot bring {self.store.url_of(shard.name)} to {path}: {error.strerror or error}; check "
                "both places, or choose another --cache"
            ) from error
        finally:
            _remove_both(partial, reserved)
        raise RunError(
            f"{self.store.url_of(shard.name)}: its SHA-256 is not the manifest's, {_TRIES} times over; "
            f"`alexnet-prep verify {self.store}` names all such shards"
        )

    def _reserve(self, reserved: Path, size: int) -> None:
        """Make an empty file of `size` bytes once there is room for it."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            self._refuse_stopped()
            with _alone(self.folder / ".lock"):
                if self.limit is None or self._make_room(self.limit - size):
                    with reserved.open("wb") as file:
                        file.truncate(size)
                    return
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self.folder}: no room for {reserved.name.removesuffix(_RESERVED)}, everything in it "
                    f"is in use and --cache-limit is {self.limit:,} bytes; raise it, or give this job a "
                    "--cache of its own"
                )
            time.sleep(_POLL_SECONDS)

    def _make_room(self, allowed: int) -> bool:
        """Delete the least recently used shards until `allowed` bytes are left, or nothing is free."""
        sizes = {}
        for path in self.folder.rglob("*"):
            if path.suffix.lower() in (".tar", _RESERVED):
                with suppress(FileNotFoundError):  # just fetched, under its own name now
                    sizes[path] = path.stat().st_size
        total = sum(sizes.values())
        for path in sorted(sizes, key=_last_use):
            if total <= allowed:
                break
            with _lock_file(path).open("ab") as lock:
                if _try_alone(lock):
                    path.unlink(missing_ok=True)
                    if path.suffix == _RESERVED:
                        path.with_suffix(_PARTIAL).unlink(missing_ok=True)
                    total -= sizes[path]
        return total <= allowed


@dataclass
class Lease:
    """Shards that stay in the cache until `release`: their paths, in the order asked for."""

    paths: list[str]
    _locks: ExitStack

    def release(self) -> None:
        """Let the cache delete them."""
        self._locks.close()


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(_RESERVED) + ".lock")


def _remove_both(partial: Path, reserved: Path) -> None:
    partial.unlink(missing_ok=True)
    reserved.unlink(missing_ok=True)


def _last_use(path: Path) -> int:
    with suppress(FileNotFoundError):
        return _lock_file(path).stat().st_mtime_ns
    return 0


def _try_alone(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    make_folder(path.parent)
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
