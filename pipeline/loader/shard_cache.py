"""A cache of shards on a local disk, which deletes the least recently used shards when it is full.

    CACHE/
      .lock                                   held while room is made
      3f2a…/train/train-000000.tar            a complete shard whose checksum matched the manifest's
      3f2a…/train/train-000000.tar.lock       locked shared by users of the shard, exclusively to delete it
      3f2a…/train/train-000000.tar.fetch      locked by the process that fetches the shard
      3f2a…/train/train-000000.tar.partial    a shard that is being fetched
      3f2a…/train/train-000000.tar.reserved   an empty file of the shard's size, which reserves its room

All processes of a host can share one folder, also jobs with different datasets. The kernel releases a lock
when its process ends, even if it is killed, so no shard stays in use by a dead process. A damaged copy is
replaced by a new file; processes that have the old file open or mapped keep reading the old one.
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
# A sparse file of the shard's size: the partial copy itself starts empty, so its size reserves nothing.
_RESERVED = ".reserved"
# Longest time that another loader may need for a segment, whose shards it then releases.
_WAIT_SECONDS = 900.0
_POLL_SECONDS = 0.05


@dataclass
class Cache:
    """A cache of one dataset's shards.

    Attributes:
        folder: Folder of the cache, which other processes and datasets may share.
        limit: Most bytes that the folder may hold, or None for no limit.
        store: Store that holds the dataset.
        name: Fingerprint of the dataset, whose first 16 characters name its folder below `folder`.
    """

    folder: Path
    limit: int | None
    store: Store
    name: str
    _proven: set[tuple[str, int]] = field(default_factory=set, repr=False)
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)

    @contextmanager
    def lease(self, shards: Sequence[Shard]) -> Iterator[list[str]]:
        """Context manager: fetch missing shards, and keep all of them in the cache.

        The checksums of those that this process has not checked yet are compared with the manifest's.

        Args:
            shards: Shards that the caller needs at the same time.

        Yields:
            The local path of each shard.

        Raises:
            RunError: A shard cannot be read or differs from the manifest's checksum, the cache cannot be
                written, has had no room for 15 minutes, or was stopped.
        """
        with ExitStack() as locks:
            with ThreadPoolExecutor(_STREAMS) as streams:
                futures = [streams.submit(self._hold, shard, locks) for shard in shards]
                wait(futures, return_when=FIRST_EXCEPTION)
                begun = [future for future in futures if not future.cancel()]
            for future in begun:
                future.result()  # raises the first error
            yield [str(self._path(shard)) for shard in shards]

    def stop(self) -> None:
        """Make `lease` raise, also in running calls, instead of waiting or starting another fetch."""
        self._stopped.set()

    def _refuse_stopped(self) -> None:
        if self._stopped.is_set():
            raise RunError("the loader was closed while shards were fetched")

    def _path(self, shard: Shard) -> Path:
        return self.folder / self.name[:16] / shard.name

    def _hold(self, shard: Shard, locks: ExitStack) -> None:
        """Bring the shard into the cache, and hold its lock, shared, until `locks` is closed."""
        self._refuse_stopped()
        path = self._path(shard)
        make_folder(path.parent)
        try:
            lock = locks.enter_context(_lock_file(path).open("ab"))
            fcntl.flock(lock, fcntl.LOCK_SH)  # from here on no process deletes the shard
            if not self._is_good(path, shard):
                self._fetch_alone(path, shard)
            os.utime(_lock_file(path))  # the time of the last use
        except OSError as error:
            raise RunError(
                f"{error.filename or path}: {error.strerror or error}; cannot keep {path.name} in "
                f"--cache {self.folder}: check that folder, or choose another"
            ) from error

    def _fetch_alone(self, path: Path, shard: Shard) -> None:
        """Fetch the shard, unless another process is fetching it: then wait for that one."""
        with path.with_name(path.name + ".fetch").open("ab") as lock:
            while not _try_alone(lock):
                self._refuse_stopped()
                time.sleep(_POLL_SECONDS)
            if not self._is_good(path, shard):
                self._fetch(path, shard)

    def _is_good(self, path: Path, shard: Shard) -> bool:
        """Whether the shard is in the cache and undamaged; each process compares its checksum once."""
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
        """Fetch the shard, and replace any copy that is already there."""
        here = path.stat().st_size if path.exists() else 0
        partial, reserved = (path.with_name(path.name + suffix) for suffix in (_PARTIAL, _RESERVED))
        try:
            for _ in range(_TRIES):
                _remove_both(partial, reserved)  # left by an earlier try, or by a process that was killed
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
                f"cannot copy {self.store.url_of(shard.name)} to {path}: {error.strerror or error}; check "
                "the dataset and the cache, or choose another --cache"
            ) from error
        finally:
            _remove_both(partial, reserved)
        raise RunError(
            f"{self.store.url_of(shard.name)}: fetched {_TRIES} times, and its SHA-256 is never the "
            f"manifest's; `alexnet-prep verify {self.store}` lists all such shards"
        )

    def _reserve(self, reserved: Path, size: int) -> None:
        """Wait until there is room for `size` bytes, then reserve them by a sparse file of that size."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            self._refuse_stopped()
            with (self.folder / ".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self.limit is None or self._make_room(self.limit - size):
                    with reserved.open("wb") as file:
                        file.truncate(size)
                    return
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self.folder}: no room for {reserved.name.removesuffix(_RESERVED)}: all shards in the "
                    f"cache are in use, and --cache-limit is {self.limit:,} bytes; raise it, or give this "
                    "job a --cache of its own"
                )
            time.sleep(_POLL_SECONDS)

    def _make_room(self, allowed: int) -> bool:
        """Delete the least recently used shards that no process uses, until at most `allowed` bytes are left.

        Returns:
            Whether that was reached.
        """
        sizes = {}
        for path in self.folder.rglob("*"):
            if path.suffix.lower() in (".tar", _RESERVED):
                with suppress(FileNotFoundError):  # another process renamed or deleted it
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
