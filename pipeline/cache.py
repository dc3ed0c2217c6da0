"""Shards kept on a local disk while they are needed, and as long as there is room.

    CACHE/
      .lock                                   held while room is made
      3f2a…/train/train-000000.tar            a whole shard, its checksum compared with the manifest's
      3f2a…/train/train-000000.tar.lock       held by those who fetch it, alone, or use it, together
      3f2a…/train/train-000000.tar.partial    being fetched, with room kept for it by a .reserved beside it

Processes of a host share one folder, jobs of different data sets too. The kernel drops a lock when its
process ends, however it ends, so nothing stays in use by the dead.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipeline.errors import RunError
from pipeline.files import make_folder, sha256_of
from pipeline.shards import Shard
from pipeline.store import Store

_TRIES = 3
_STREAMS = 4
_PARTIAL = ".partial"
# An empty file as long as the shard that is being fetched: what copies a shard begins with an empty file.
_RESERVED = ".reserved"
_WAIT_SECONDS = 60.0
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

    def hold(self, shards: Sequence[Shard]) -> "Hold":
        """Fetch what is missing, check what this process has not checked yet, and keep all of it.

        Raises:
            RunError: the dataset cannot be read, a shard is not what the manifest says, no room.
        """
        with ThreadPoolExecutor(_STREAMS) as streams:
            fetched = [streams.submit(self._hold, shard) for shard in shards]
        with ExitStack() as stack:
            for future in fetched:
                if future.exception() is None:
                    stack.enter_context(future.result())
            for future in fetched:
                future.result()  # the first error, with the other shards let go
            return Hold([str(self._path(shard)) for shard in shards], stack.pop_all())

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
        path = self._path(shard)
        make_folder(path.parent)
        lock = _lock_file(path).open("ab")
        try:
            while True:
                self._refuse_stopped()
                fcntl.flock(lock, fcntl.LOCK_SH)
                if self._is_good(path, shard):
                    os.utime(_lock_file(path))  # the least recently used go first
                    return lock
                fcntl.flock(lock, fcntl.LOCK_UN)
                if _try_alone(lock):
                    self._fetch(path, shard)
                else:  # somebody else is fetching it
                    time.sleep(_POLL_SECONDS)
        except BaseException:
            lock.close()
            raise

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
        """Bring the shard here; its lock is held alone."""
        path.unlink(missing_ok=True)
        partial, reserved = (path.with_name(path.name + suffix) for suffix in (_PARTIAL, _RESERVED))
        try:
            for _ in range(_TRIES):
                _remove_both(partial, reserved)  # of an earlier try, or of a process that was killed
                self._reserve(reserved, shard.bytes)
                self.store.copy_to(shard.name, partial)
                if sha256_of(partial) == shard.sha256:
                    with partial.open("rb") as file:
                        os.fsync(file.fileno())
                    partial.replace(path)
                    self._proven.add((shard.name, path.stat().st_mtime_ns))
                    return
        except OSError as error:
            raise RunError(
                f"cannot bring {self.store.place(shard.name)} to {path}: {error.strerror or error}; check "
                "both places, or choose another --cache"
            ) from error
        finally:
            _remove_both(partial, reserved)
        raise RunError(
            f"{self.store.place(shard.name)}: its SHA-256 is not the manifest's, {_TRIES} times over; "
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
class Hold:
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
