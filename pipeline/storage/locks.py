"""Locks that end with the process that holds them."""

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
    """Hold the lock `folder/name.lock`; the kernel drops it when the process ends, however it ends.

    Some network file systems have no locks. Two jobs there do the same work twice: files appear whole, and
    the same input gives the same bytes.

    Args:
        folder: holds the lock files, inside the folder that they protect; it is created.
        name: of the lock.
        shared: several processes may hold it at once, but not beside one that holds it alone.
        wait: wait until the lock is free, instead of refusing.

    Raises:
        UsageError: another job holds it.
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
            # A job that ended in between has removed the folder: then this file is not the lock any more.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
            make_folder(folder)
        yield
