"""Locks of folders: a file that says which process works in the folder, renewed while that process lives.

    NAME.lock               the holder, as JSON; it renews the modification time every 30 s
    NAME.lock.after-TOKEN   who comes after the holder with that token: the process that takes the lock over,
                            or the holder itself as it releases the lock

Both are made with `O_CREAT | O_EXCL`, in which one process alone succeeds, on network file systems too
(`flock` holds across hosts on some of them only). Tokens are never used twice. So only the process that has
made `after-TOKEN` replaces or removes the lock of that token, and of any number that take over one lock, one
gets it.

A lock is dead where its process is known to be gone, or where it has not been renewed for five minutes by the
file system's own clock. Only a process of the same host, boot and PID namespace can be known: containers may
share the first two, and then the same number is another process. Elsewhere the renewal alone decides.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import PARTIAL, make_folder
from pipeline.storage.holder import Holder, new_holder

RENEW_SECONDS = 30.0
"""Time between two renewals of a lock."""

DEAD_SECONDS = 300.0
"""Time without renewal after which a lock is dead."""

_POLL_SECONDS = 0.2
# A lock without content for longer was left by a process that was killed as it made it.
_WRITING_SECONDS = 2.0


class LockedError(UsageError):
    """Another process works in the folder."""


class TakenOverError(RunError):
    """Another process has taken over the folder in which this one worked."""


@dataclass(frozen=True)
class Lease:
    """Shows whether a lock is still held, also to the workers of its holder: it can be pickled.

    Attributes:
        path: The lock file.
        folder: The folder that it protects, for messages.
        token: Token of the holder.
    """

    path: Path
    folder: Path
    token: str

    def check(self) -> None:
        """Look at the lock file; to be called before something is written to the folder.

        Raises:
            TakenOverError: Another process has taken the lock over, or the lock was removed.
        """
        try:
            seen = _chain(self.path)
        except OSError:  # the file system does not answer: what is written next will say so
            return
        if not seen or seen[-1].token != self.token:
            who = f"{_named(seen[-1].holder)} has taken it over" if seen else f"{self.path} was removed"
            raise TakenOverError(f"{self.folder}: {who}; this process stops and writes nothing more there")


class Lock:
    """A lock of a folder; see the module for when another process may take it over.

    As a context manager it is released at the end of the block, in which `acquire` may be called.
    """

    def __init__(
        self, path: Path, folder: Path, *, renew: float = RENEW_SECONDS, dead: float = DEAD_SECONDS
    ) -> None:
        """Describe the lock; nothing is locked yet.

        Args:
            path: The lock file.
            folder: The folder that it protects, for messages.
            renew: Seconds between two renewals.
            dead: Seconds without renewal after which another's lock is dead.
        """
        self._path, self._folder, self._renew_seconds, self._dead_seconds = path, folder, renew, dead
        self._released = threading.Event()
        self._lost: TakenOverError | None = None
        self.lease: Lease | None = None
        """Shows that the lock is held; None before `acquire`."""

    def acquire(self, *, take_over: bool = False, on_wait: Callable[[str], None] | None = None) -> None:
        """Take the lock, and renew it in a thread from now on.

        A dead lock, and one of an earlier start of the same launch, is taken over at once.

        Args:
            take_over: Take over a living lock too; its holder stops as soon as it notices.
            on_wait: Wait until a lock whose process cannot be seen is renewed or dead, and call this with a
                line that says so; None refuses such a lock at once.

        Raises:
            LockedError: Another process holds the lock.
            RunError: The lock cannot be written.
        """
        mine = new_holder()
        while not self._make(self._path, mine):
            seen = _chain(self._path)
            if not seen:
                continue  # released meanwhile
            last = seen[-1]
            being_written = last.holder is None and self._age(last) < _WRITING_SECONDS
            being_replaced = len(seen) > 1 and not self._is_dead(last)
            if being_written or being_replaced:
                time.sleep(_POLL_SECONDS)
            elif take_over or _same_launch(last, mine) or self._is_dead(last):
                if self._take_over(seen, mine):
                    break
            elif on_wait is None or last.is_alive():
                raise self._locked(last)
            else:
                self._wait(last, on_wait)
        self.lease = Lease(self._path, self._folder, mine.token)
        threading.Thread(target=self._renew, args=(self.lease,), name="alexnet-lock", daemon=True).start()

    def check(self) -> None:
        """Raise TakenOverError where the last renewal found that the lock was taken over; costs nothing."""
        if self._lost:
            raise self._lost

    def confirm(self) -> None:
        """Raise TakenOverError where the lock file says that the lock was taken over; see `Lease.check`."""
        self.check()
        if self.lease:
            self.lease.check()

    def release(self) -> None:
        """Remove the lock, unless another process has taken it over; without a lock do nothing."""
        self._released.set()
        lease, self.lease = self.lease, None
        if lease is None:
            return
        claim = _claim(self._path, lease.token)
        with suppress(OSError, RunError):  # the work is done: a lock that stays is dead with this process
            if self._make(claim, new_holder()):
                if [seen.token for seen in _chain(self._path)[:1]] == [lease.token]:
                    self._path.unlink(missing_ok=True)
                claim.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _make(self, path: Path, holder: Holder) -> bool:
        """Make the file if there is none; whether it was made."""
        while True:
            make_folder(path.parent)
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            except FileNotFoundError:  # a job that ended removed the folder
                continue
            except OSError as error:
                raise RunError(
                    f"{self._folder}: cannot be locked ({path}: {error.strerror}); make it writable, or "
                    "choose another folder"
                ) from error
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.encode(holder) + b"\n")
            except OSError as error:
                with suppress(OSError):
                    path.unlink()
                raise RunError(f"cannot write {path}: {error.strerror}; free space there") from error
            return True

    def _is_dead(self, last: "_Seen") -> bool:
        return last.is_alive() is False or self._age(last) >= self._dead_seconds

    def _age(self, seen: "_Seen") -> float:
        """Return the seconds since a lock was renewed, by the clock of its file system."""
        probe = self._path.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{self._path.name}")
        try:
            probe.write_bytes(b"\n")
            return (probe.stat().st_mtime_ns - seen.renewed) / 1e9
        except FileNotFoundError:  # the holder has removed it, as a leftover or with the folder
            return 0.0
        except OSError as error:
            raise RunError(
                f"{self._folder}: cannot be locked ({probe}: {error.strerror}); make it writable, or choose "
                "another folder"
            ) from error
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def _take_over(self, seen: "list[_Seen]", mine: Holder) -> bool:
        """Replace a lock; False where another process was faster."""
        claim = _claim(self._path, seen[-1].token)
        if not self._make(claim, mine):
            return False
        if [each.token for each in _chain(self._path)][-1:] != [mine.token]:  # released or replaced meanwhile
            claim.unlink(missing_ok=True)
            return False
        claim.replace(self._path)
        for claimed in seen[1:]:  # by processes that were killed as they took it over
            with suppress(OSError):
                claimed.path.unlink(missing_ok=True)
        return True

    def _wait(self, last: "_Seen", on_wait: Callable[[str], None]) -> None:
        """Wait until a lock is dead or no longer there.

        Raises:
            LockedError: The lock was renewed.
        """
        left = self._dead_seconds - self._age(last)
        on_wait(
            f"{self._folder}: {_named(last.holder)} works there, but cannot be seen from here; waiting up to "
            f"{left:.0f} s until its lock is renewed or dead (--take-over does not wait)"
        )
        until = time.monotonic() + left + _POLL_SECONDS
        while time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
            seen = _chain(self._path)
            if not seen or seen[-1].token != last.token:
                return
            if seen[-1].renewed != last.renewed:
                raise self._locked(last)

    def _locked(self, last: "_Seen") -> LockedError:
        return LockedError(
            f"{self._folder}: {_named(last.holder)} works there; wait for it or stop it, or give --take-over "
            "to go on in its place"
        )

    def _renew(self, lease: Lease) -> None:
        while not self._released.wait(self._renew_seconds):
            try:
                lease.check()
                os.utime(lease.path)
            except TakenOverError as error:
                if not self._released.is_set():
                    self._lost = error
                return
            except OSError:  # the file system does not answer: the next renewal may
                pass


@contextmanager
def locked(path: Path, folder: Path, *, take_over: bool = False) -> Iterator[Lock]:
    """Context manager: hold a lock; see `Lock`."""
    with Lock(path, folder) as lock:
        lock.acquire(take_over=take_over)
        yield lock


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock with this file, or one that cannot be seen but may live."""
    seen = _chain(path)
    return bool(seen) and not Lock(path, path.parent)._is_dead(seen[-1])


@dataclass(frozen=True)
class _Seen:
    """A lock file as it was read.

    Attributes:
        path: The file.
        holder: Its content; None where that is incomplete.
        renewed: Its modification time, nanoseconds.
    """

    path: Path
    holder: Holder | None
    renewed: int

    @property
    def token(self) -> str:
        return self.holder.token if self.holder else "unknown"

    def is_alive(self) -> bool | None:
        return self.holder.is_alive() if self.holder else None


def _same_launch(last: _Seen, mine: Holder) -> bool:
    """Whether a lock is of an earlier start of a process's launch, which its launcher has ended."""
    holder = last.holder
    return bool(holder and mine.launch and holder.launch == mine.launch and not holder.is_alive())


def _chain(path: Path) -> list[_Seen]:
    """Read a lock, the claim to come after it, the claim to come after that, and so on; the last holds it."""
    found: list[_Seen] = []
    while (seen := _read(path)) and seen.path not in {each.path for each in found}:
        found.append(seen)
        path = _claim(found[0].path, seen.token)
    return found


def _read(path: Path) -> _Seen | None:
    try:
        with path.open("rb") as file:
            renewed, data = os.fstat(file.fileno()).st_mtime_ns, file.read()
    except FileNotFoundError:
        return None
    holder = None
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        holder = msgspec.json.decode(data, type=Holder)
    # The token becomes part of a file's name.
    return _Seen(path, holder if holder and holder.token.isalnum() else None, renewed)


def _claim(path: Path, token: str) -> Path:
    return path.with_name(f"{path.name}.after-{token}")


def _named(holder: Holder | None) -> str:
    if holder is None:
        return "a process whose lock cannot be read"
    return f"process {holder.pid} on {holder.host} (since {holder.since})"
