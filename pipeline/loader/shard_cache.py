"""A cache of shards on a local disk, which deletes the least recently used shards when it is full.

    DIR/alexnet-shards/                       the cache; nothing else in DIR is touched
      .lock                                   held while room is made
      3f2a…/train/train-000000.tar            a complete shard whose checksum matched the manifest's
      3f2a…/train/train-000000.tar.partial    a shard that is being fetched
      3f2a…/train/train-000000.tar.record     what the manifest says of the shard, as JSON: the cache made
                                              this tar, or reserves room for it; empty if it did neither.
                                              Locked shared by users, exclusively to delete the shard
      3f2a…/train/train-000000.tar.fetch      locked by the process that fetches the shard

All processes of a host can share one folder, also jobs with different datasets. The kernel releases a lock
when its process ends, even if it is killed, so no shard stays in use by a dead process. A damaged copy is
replaced by a new file; processes that have the old file open or mapped keep reading the old one. Files
without a record are somebody else's: they count, but they are neither deleted nor replaced.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from pipeline.dataset.manifest import Shard, to_json
from pipeline.errors import RunError
from pipeline.host import refuse_too_many_open_files
from pipeline.storage.atomic import make_folder, sha256_of
from pipeline.storage.base import Store

_TRIES = 3
_FOLDER = "alexnet-shards"
_PARTIAL, _RECORD, _FETCH = ".partial", ".record", ".fetch"
# Longest time that another loader may need for a shard, which it then releases.
_WAIT_SECONDS = 900.0
_POLL_SECONDS = 0.05


@dataclass
class Cache:
    """A cache of one dataset's shards.

    Attributes:
        parent: Folder that holds the cache's own folder, which other processes and datasets may share.
        limit: Most bytes that the cache's own folder may hold, or None for no limit.
        store: Store that holds the dataset.
        name: Fingerprint of the dataset, whose first 16 characters name its folder below `folder`.
    """

    parent: Path
    limit: int | None
    store: Store
    name: str
    _proven: set[tuple[str, int]] = field(default_factory=set, repr=False)

    @property
    def folder(self) -> Path:
        """The cache's own folder."""
        return self.parent / _FOLDER

    def foreign_bytes(self) -> int:
        """Return the size of the files in the cache's folder that it did not make."""
        return self._content()[1]

    def holds(self, shard: Shard) -> bool:
        """Whether there is a copy of a shard, damaged or not."""
        return self._path(shard).exists()

    @contextmanager
    def lease(self, shard: Shard, over: threading.Event) -> Iterator[str]:
        """Context manager: fetch a shard if it is missing, and keep it in the cache.

        If this process has not checked its checksum yet, it is compared with the manifest's.

        Args:
            shard: The shard.
            over: Once it is set, nobody needs the shard: instead of waiting or fetching, this raises.

        Yields:
            The local path of the shard.

        Raises:
            RunError: The shard cannot be read or differs from the manifest's checksum, the cache cannot be
                written or has had no room for 15 minutes, or `over` is set.
        """
        path = self._path(shard)
        _refuse_if(over)
        make_folder(path.parent)
        with ExitStack() as locks:
            try:
                record = locks.enter_context(_beside(path, _RECORD).open("ab"))
                fcntl.flock(record, fcntl.LOCK_SH)  # from here on no process deletes the shard
                if not self._is_good(path, shard):
                    self._fetch_alone(path, shard, over)
                os.utime(_beside(path, _RECORD))  # the time of the last use
            except OSError as error:
                refuse_too_many_open_files(error)
                raise RunError(
                    f"{error.filename or path}: {error.strerror or error}; cannot keep {path.name} in "
                    f"--cache {self.parent}: check that folder, or choose another"
                ) from error
            yield str(path)

    def _path(self, shard: Shard) -> Path:
        return self.folder / self.name[:16] / shard.name

    def _fetch_alone(self, path: Path, shard: Shard, over: threading.Event) -> None:
        """Fetch the shard, unless another process is fetching it: then wait for that one."""
        with _beside(path, _FETCH).open("ab") as lock:
            while not _try_alone(lock):
                _refuse_if(over)
                time.sleep(_POLL_SECONDS)
            if not self._is_good(path, shard):
                self._fetch(path, shard, over)

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

    def _fetch(self, path: Path, shard: Shard, over: threading.Event) -> None:
        """Fetch the shard, and replace any copy that the cache made before."""
        partial = _beside(path, _PARTIAL)
        self._reserve(path, shard, over)
        try:
            for _ in range(_TRIES):
                _refuse_if(over)
                self.store.copy_to(shard.name, partial)
                if sha256_of(partial) == shard.sha256:
                    with partial.open("rb") as file:
                        os.fsync(file.fileno())
                    partial.replace(path)
                    self._proven.add((shard.name, path.stat().st_mtime_ns))
                    return
        except OSError as error:
            refuse_too_many_open_files(error)
            raise RunError(
                f"cannot copy {self.store.url_of(shard.name)} to {path}: {error.strerror or error}; check "
                "the dataset and the cache, or choose another --cache"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
            if not path.exists():
                _beside(path, _RECORD).write_bytes(b"")  # the room is free again
        raise RunError(
            f"{self.store.url_of(shard.name)}: fetched {_TRIES} times, and its SHA-256 is never the "
            f"manifest's; `alexnet-prep verify {self.store}` lists all such shards"
        )

    def _reserve(self, path: Path, shard: Shard, over: threading.Event) -> None:
        """Wait until there is room for the shard, then write its record, which reserves the room.

        Raises:
            RunError: There is no room for 15 minutes, or another program put files where the shard goes.
        """
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            _refuse_if(over)
            with (self.folder / ".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                held, foreign = self._content()
                if path not in held and path.exists():
                    raise RunError(
                        f"{path}: another program's file, where the cache keeps a shard; move it away"
                    )
                if self.limit is None or self._make_room(held, path, self.limit - shard.bytes - foreign):
                    if held.get(path) != shard:
                        _beside(path, _RECORD).write_bytes(to_json(shard))
                    return
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self.folder}: no room for {path.name}: all shards in the cache are in use, and "
                    f"--cache-limit is {self.limit:,} bytes; raise it, or give this job a --cache of its own"
                )
            time.sleep(_POLL_SECONDS)

    def _make_room(self, held: dict[Path, Shard], path: Path, allowed: int) -> bool:
        """Delete the least recently used shards that no process uses, until the rest fits in `allowed` bytes.

        Args:
            held: The shards in the cache.
            path: Path of the shard that needs the room; it is not counted itself.
            allowed: Most bytes that all others may have.

        Returns:
            Whether that was reached.
        """
        others = {other: shard.bytes for other, shard in held.items() if other != path}
        total = sum(others.values())
        for other in sorted(others, key=lambda other: _beside(other, _RECORD).stat().st_mtime_ns):
            if total <= allowed:
                break
            with _beside(other, _RECORD).open("r+b") as record:
                if _try_alone(record):
                    other.unlink(missing_ok=True)
                    _beside(other, _PARTIAL).unlink(missing_ok=True)
                    record.truncate(0)
                    total -= others[other]
        return total <= allowed

    def _content(self) -> tuple[dict[Path, Shard], int]:
        """Return path → record of each shard in the cache or on its way, and the size of other files."""
        held: dict[Path, Shard] = {}
        sizes: dict[Path, int] = {}
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # another process renamed or deleted it
                if path.suffix == _RECORD and (shard := _recorded(path)) is not None:
                    held[path.with_suffix("")] = shard
                elif path.is_file():
                    sizes[path] = path.stat().st_size
        ours = held.keys() | {_beside(path, _PARTIAL) for path in held}
        return held, sum(size for path, size in sizes.items() if path not in ours)


def _beside(path: Path, suffix: str) -> Path:
    """Return the path of a file of the cache that belongs to the shard at `path`."""
    return path.with_name(path.name + suffix)


def _recorded(path: Path) -> Shard | None:
    """Read a shard's record; None if it is empty, or a file of another program."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Shard)
    except msgspec.DecodeError:
        return None


def _refuse_if(over: threading.Event) -> None:
    if over.is_set():
        raise RunError("the loader was closed, or another iteration began, while shards were fetched")


def _try_alone(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
