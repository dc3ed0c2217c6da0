"""The output folder of a preparation: whether it may be used, who works in it, what is removed from it.

.work/job.lock            held by a whole job or `finish`, which hold the locks of all slices as well
.work/task-0-of-16.lock   held by a slice, beside other slices
.work/plan.lock           held by the slice that makes the plan for all
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.dataset.index import index_name
from pipeline.dataset.manifest import FILE_NAME, MEAN_IMAGE, read_manifest
from pipeline.dataset.report import REPORT
from pipeline.dataset.work import WORK
from pipeline.errors import ToolkitError, UsageError
from pipeline.sharding.plan import PLAN, Plan, read_plan
from pipeline.sources.left_out import is_debris
from pipeline.storage.atomic import refuse_dead_link
from pipeline.storage.base import Store
from pipeline.storage.local import LocalStore
from pipeline.storage.locks import Lease, LockedError, is_held, locked
from pipeline.storage.open import open_store

_FOLDERS = ("plan", "held_out", "results", "scratch")
# What the work folder may hold besides: locks, unfinished files, and files that NFS keeps as they are open.
_FILES = re.compile(r"plan\.json|[\w-]+\.lock(\.after-\w+)?|\.writing-.*|\.nfs.*")
_POLL_SECONDS = 0.2


def open_output(out: str | Path, source: str | Path, *, force: bool = False) -> tuple[Store, Store]:
    """Open the dataset's folder and the source, and refuse an output folder that cannot be used.

    What systems leave behind, such as a new disk's `lost+found`, may lie in it.

    Args:
        out: Folder of the dataset, local or in a bucket.
        source: Path or URL of the source.
        force: Whether an earlier dataset in the folder is to be replaced.

    Raises:
        UsageError: The output is a file or a dead link, holds files of others only, or is the source; or,
            with `force`, it holds tars that `stats` indexed.
    """
    store, origin = absolute(open_store(out)), absolute(open_store(source))
    _refuse_source(store, origin)
    if store.local is not None:
        refuse_dead_link(store.local)
        if store.local.exists() and not store.local.is_dir():
            raise UsageError(f"output {store}: it is a file; name a new folder")
    names = {name for name in store.names() if name == WORK or not is_debris(name)}
    if names and FILE_NAME not in names and not (WORK in names and _is_ours(store)):
        raise UsageError(f"output {store}: holds other files; name a new or empty folder")
    if force:
        files_of(store)
    return store, origin


def absolute(store: Store) -> Store:
    """Make a local path absolute: workers may have another current folder."""
    return store if store.local is None else LocalStore(str(store.local.absolute()))


@contextmanager
def whole_job(out: Store, *, take_over: bool) -> Iterator[Lease | None]:
    """Context manager: lock an output folder for a whole job, which no slice may run beside.

    A bucket has no locks: two jobs there write equal files twice, without harm.

    Args:
        out: Folder of the dataset.
        take_over: Take over the locks of living jobs.

    Yields:
        The lease of the lock, or None for a bucket.

    Raises:
        LockedError: Another job, or a slice, is running.
    """
    if out.local is None:
        yield None
        return
    work = out.local / WORK
    with ExitStack() as stack:
        # A slice takes its own lock and then looks for the job's, so one of the two sees the other.
        lock = stack.enter_context(locked(work / "job.lock", out.local, take_over=take_over))
        for path in sorted(work.glob("task-*.lock")):
            stack.enter_context(locked(path, out.local, take_over=take_over))
        yield lock.lease


@contextmanager
def one_slice(out: Store, index: int, count: int, *, take_over: bool) -> Iterator[Lease | None]:
    """Context manager: lock a slice of a job, beside other slices; see `whole_job`.

    Raises:
        LockedError: The same slice is running, or a whole job.
    """
    if out.local is None:
        yield None
        return
    job = out.local / WORK / "job.lock"
    own = out.local / WORK / f"task-{index}-of-{count}.lock"
    with locked(own, out.local, take_over=take_over) as lock:
        if is_held(job):
            with locked(job, out.local, take_over=take_over):
                pass  # its job stops as soon as it notices
        yield lock.lease


def make_plan_once(out: Store, make: Callable[[], object]) -> None:
    """Make a job's plan, unless it is stored; of several slices, one makes it while the others wait."""
    while not out.is_file(PLAN):
        if out.local is None:
            make()
            continue
        try:
            with locked(out.local / WORK / "plan.lock", out.local):
                if not out.is_file(PLAN):
                    make()
        except LockedError:
            time.sleep(_POLL_SECONDS)


def files_of(out: Store) -> list[str]:
    """Return the names of the files that an earlier job made in a folder, outside of its work folder.

    The manifest is the last, so that a removal that was interrupted can be begun again.

    Raises:
        UsageError: The manifest or the plan cannot be read, or the tars are another tool's.
    """
    names: list[str] = []
    if out.is_file(PLAN):
        names += _files_in(read_plan(out))
    if out.is_file(FILE_NAME):
        manifest = read_manifest(out)
        if manifest.adopted:
            raise UsageError(
                f"output {out}: its tars are another tool's, which `alexnet-prep stats` indexed; name a new "
                "folder"
            )
        tars = [shard.name for shard in manifest.shards]
        names += [*tars, *map(index_name, tars), REPORT, MEAN_IMAGE, FILE_NAME]
    return list(dict.fromkeys(names))


def remove_earlier(out: Store, plan: Plan) -> None:
    """Remove what an earlier job made in a folder, before the files of a new plan are written there.

    Files of others stay.

    Raises:
        UsageError: Such a file has a name that the new plan needs. Nothing is removed then.
    """
    ours = files_of(out)
    present = {file.path for file in out.walk()[0]}
    if in_the_way := sorted(present.intersection(_files_in(plan)) - set(ours)):
        raise UsageError(
            f"{out.url_of(in_the_way[0])}: is in the way, and not part of the dataset that --force replaces; "
            "move it, or name a new folder"
        )
    for name in ours:
        out.remove(name)
    if out.local is not None:
        for folder in {name.rpartition("/")[0] for name in ours if "/" in name}:
            with suppress(OSError):  # holds files of others
                (out.local / folder).rmdir()
    _empty_work(out)


def remove_work(out: Store) -> None:
    """Remove the work folder of a complete dataset, as far as is possible now: what is left does no harm.

    Network file systems keep a file that is still open in some process, under another name, and its folder.
    """
    _empty_work(out)
    if out.local is not None:
        with suppress(OSError):
            for path in (out.local / WORK).iterdir():
                if _FILES.fullmatch(path.name) and not path.name.startswith(".nfs"):
                    with suppress(OSError):
                        path.unlink()
            (out.local / WORK).rmdir()


def _empty_work(out: Store) -> None:
    """Remove all from the work folder but its locks."""
    if out.local is None:
        with suppress(ToolkitError, OSError):
            out.remove(WORK)
        return
    for name in _FOLDERS:
        shutil.rmtree(out.local / WORK / name, ignore_errors=True)
    with suppress(OSError):
        (out.local / PLAN).unlink(missing_ok=True)


def _files_in(plan: Plan) -> list[str]:
    """Return the names of the files of a plan's dataset, but for its manifest."""
    shards = [f"{shard.name}{suffix}" for shard in plan.shards for suffix in (".tar", ".idx")]
    return [*shards, REPORT, MEAN_IMAGE]


def _is_ours(out: Store) -> bool:
    """Whether the work folder is one of a preparation."""
    return out.is_file(PLAN) or all(name in _FOLDERS or _FILES.fullmatch(name) for name in out.names(WORK))


def _refuse_source(out: Store, source: Store) -> None:
    """Refuse the source as the output; a folder in it is fine, since listing a source leaves datasets out."""
    if out.local is None or source.local is None:
        same = out.url.rstrip("/") == source.url.rstrip("/")
    else:
        same = out.local.resolve() == source.local.resolve()
    if same:
        raise UsageError(f"output {out}: it is the source; choose another folder")
