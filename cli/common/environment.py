"""Folders where libraries keep their caches, chosen before they are imported."""

import atexit
import getpass
import os
import shlex
import shutil
import tempfile
from functools import cache
from pathlib import Path


def choose_cache_folders() -> None:
    """Let torch, Triton and matplotlib keep their caches where this user can write and compilers can read.

    Compiled kernels go to `alexnet-toolkit/compiled` in the user's cache folder: torch's default, /tmp, may
    not outlive a reboot. Where the home folder is unknown or read-only, as in containers under a foreign
    user, all caches go to a private temporary folder, which is removed at the end. The compiled kernels
    alone go there if a compiler's command line would break at a space in their path. Apart from that,
    variables that have a value are kept. Child processes inherit all.

    Raises:
        OSError: A temporary folder is needed, and none can be made.
    """
    try:
        Path.home()
    except RuntimeError:  # HOME is unset, and this user has no entry in passwd
        os.environ["HOME"] = str(_temporary_folder())
    try:
        getpass.getuser()  # as torch does
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    caches = _user_folder("XDG_CACHE_HOME", ".cache")
    if not _is_writable(caches):
        caches = _temporary_folder()
        os.environ["XDG_CACHE_HOME"] = str(caches)
    if not _is_writable(_user_folder("XDG_CONFIG_HOME", ".config")):
        os.environ.setdefault("MPLCONFIGDIR", str(_temporary_folder() / "matplotlib"))
    compiled = caches / "alexnet-toolkit" / "compiled"
    if not is_one_word(str(compiled)):
        compiled = _temporary_folder() / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    os.environ.setdefault("TRITON_CACHE_DIR", str(compiled / "triton"))


def is_one_word(path: str) -> bool:
    """Whether a path stays whole in a command line that is split at spaces."""
    try:
        return shlex.split(path) == [path]
    except ValueError:  # a quotation mark
        return False


def _user_folder(variable: str, name: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / name)


def _is_writable(folder: Path) -> bool:
    """Whether this user can make files in a folder, which need not exist yet."""
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if os.access(path, os.F_OK)
    )
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


@cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="alexnet-caches-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
