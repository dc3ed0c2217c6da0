"""The folder of a run that begins: whether it may be used, who works in it, what --force removes from it."""

from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import msgspec

from pipeline.errors import UsageError
from pipeline.storage.atomic import PARTIAL, remove_leftovers
from pipeline.storage.locks import Lock
from trainer.distributed.env import DistEnv
from trainer.distributed.failures import raise_together
from trainer.runs import checkpoint
from trainer.runs.metrics_file import METRICS_FILE
from trainer.runs.run_folder import LOCK_FILE, RECIPE_FILE, REPORT_FILE, RUN_FILE, TENSORBOARD, is_run
from trainer.runs.status import STATUS_FILE

# All files that a run and its report consist of. run.json is the last: a removal that was interrupted can be
# begun again.
_FILES = (
    *(METRICS_FILE, STATUS_FILE, REPORT_FILE, checkpoint.LAST, checkpoint.BEST, "step-*.pt"),
    *(f"{TENSORBOARD}/events.out.tfevents.*", f"{PARTIAL}*", RECIPE_FILE, RUN_FILE),
)


def new_lock(folder: Path) -> Lock:
    """Return the lock of a run's folder, not yet acquired."""
    return Lock(folder / LOCK_FILE, folder)


def resume(
    folder: Path, lock: Lock, env: DistEnv, on_wait: Callable[[str], None], *, take_over: bool = False
) -> None:
    """Lock the folder of a run to continue it, if there is one, and remove unfinished files.

    Where the lock may be that of a process that was killed on another host, this waits until it is dead.

    Args:
        folder: The run's folder.
        lock: Its lock, which rank 0 acquires.
        env: This process's environment; all processes call this.
        on_wait: Called with a line for the user before a wait.
        take_over: Take the lock from a living process.

    Raises:
        LockedError: Another process works in the folder.
        RunError: The folder cannot be written.
    """

    def work() -> None:
        if env.is_first and is_run(folder):
            lock.acquire(take_over=take_over, on_wait=on_wait)
            remove_leftovers(folder)

    raise_together(work, env)


def claim(folder: Path, lock: Lock, env: DistEnv, *, force: bool = False, take_over: bool = False) -> None:
    """Lock a folder for a new run, and remove an earlier one from it; after `resume` it is locked already.

    Args:
        folder: A new or empty folder, or with `force` one of an earlier run.
        lock: Its lock, which rank 0 acquires.
        env: This process's environment; all processes call this.
        force: Remove an earlier run. Files of others stay.
        take_over: Take the lock from a living process.

    Raises:
        UsageError: The folder holds files and `force` is not given, or it holds no run.
        LockedError: Another process works in it.
        RunError: The folder cannot be written.
    """

    def work() -> None:
        if env.is_first and lock.lease is None:
            _refuse_used(folder, force)  # before the lock: folders of others are not touched
            lock.acquire(take_over=take_over)
            _refuse_used(folder, force)  # another process may have begun a run meanwhile
            if force:
                _remove_run(folder)

    raise_together(work, env)


def _remove_run(folder: Path) -> None:
    for pattern in _FILES:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or it holds files of others
        (folder / TENSORBOARD).rmdir()


def _refuse_used(folder: Path, force: bool) -> None:
    if not folder.exists() or (folder.is_dir() and all(_is_lock(path) for path in folder.iterdir())):
        return
    ours = folder.is_dir() and _is_ours(folder)
    if not (ours and force):
        remedy = "continue that run with --resume, replace it with --force, or " if ours else ""
        raise UsageError(f"{folder}: already holds files; {remedy}choose another --out")
    if odd := next((path for pattern in _FILES for path in folder.glob(pattern) if path.is_dir()), None):
        raise UsageError(f"{odd}: is in the way, and not part of the run that --force replaces; move it")


def _is_lock(path: Path) -> bool:
    return fnmatch(path.name, f"{LOCK_FILE}*") or fnmatch(path.name, f"{PARTIAL}*-{LOCK_FILE}*")


def _is_ours(folder: Path) -> bool:
    """Whether a folder's run.json is one of this toolkit's."""
    try:
        facts = msgspec.json.decode((folder / RUN_FILE).read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError):
        return False
    return {"recipe", "dataset_sha256", "machine"} <= facts.keys()
