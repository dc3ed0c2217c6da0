"""Folders for temporary files that other processes of the same user find by their names."""

import os
import stat
from pathlib import Path
from tempfile import TemporaryFile

from pipeline.errors import UsageError
from pipeline.storage.atomic import make_folder


def make_private_folder(path: Path) -> None:
    """Create a folder that only this user can enter, or check that an existing one is that.

    In a folder that everybody may write to, such as /tmp, another user could have made it, and put files into
    it that would be taken for ours.

    Raises:
        UsageError: Something else is there: a link, a folder of another user, or one that others can enter.
        RunError: The folder cannot be created.
    """
    make_folder(path.parent)
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        with TemporaryFile(dir=path) as file:
            owner = os.fstat(file.fileno()).st_uid  # a network file system may call root "nobody"
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; remove it, or give another --scratch") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
        raise UsageError(
            f"{path}: another user made it or can write to it; remove it, or give another --scratch"
        )
