"""File locks that the kernel releases when the process that holds them ends."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.storage.atomic import make_folder


@contextmanager
def lock(folder: Path, name: str, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Context manager: hold the lock `folder/name.lock`, a `flock` that also ends when the process is killed.

    Where a network file system has no locks, nothing is locked. Two jobs there do the same work twice, which
    does no harm: files appear atomically, and the same input gives the same bytes.

    Args:
        folder: folder of the lock files, which is created; its parent is the folder that they protect.
        name: name of the lock.
        shared: take a shared lock, which several processes may hold at once, but not while another holds an
            exclusive one.
        wait: wait until the lock is free, instead of raising UsageError.

    Raises:
        UsageError: another process holds the lock.
        RunError: the folder cannot be created.
    """
    make_folder(folder)
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with ExitStack() as stack:
        path = folder / f"{name}.lock"
        while True:
            file = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(file, kind)
            except BlockingIOError:
                raise UsageError(
                    f"another job is writing to {folder.parent}; wait for it or stop it"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
            # A job that ended meanwhile may have removed the folder: then this file is no longer the lock.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
            make_folder(folder)
        yield
