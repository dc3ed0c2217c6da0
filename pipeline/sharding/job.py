"""The preparation job: plan the shards, run every unfinished task on an executor, and merge the results.

A job that is killed leaves only complete shards and no manifest; the same call makes the remaining shards.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.arguments import checked
from pipeline.dataset.manifest import FILE_NAME, Manifest, read_manifest
from pipeline.dataset.work import WORK
from pipeline.errors import RunError, ToolkitError, UsageError
from pipeline.executors.base import Executor, Item
from pipeline.executors.local import LocalExecutor
from pipeline.progress import OnProgress, counted, no_progress
from pipeline.sharding.duplicates import HeldOut, held_out_shards, unhashed
from pipeline.sharding.merge import BadImagesError, merge, merged, too_many_bad
from pipeline.sharding.output import (
    absolute,
    make_plan_once,
    one_slice,
    open_output,
    remove_earlier,
    remove_work,
    whole_job,
)
from pipeline.sharding.plan import (
    Options,
    Plan,
    ShardSummary,
    agreed_plan,
    check_slice,
    make_plan,
    read_plan,
)
from pipeline.sharding.result import finished, forget_outdated, forget_skips
from pipeline.sharding.task import ShardJob, run_hash, run_shard, run_spool
from pipeline.sources.base import AS_FOUND, Source, SourceOptions
from pipeline.sources.detection import read_source
from pipeline.sources.spool import needs_spool
from pipeline.storage.base import Store
from pipeline.storage.local import LocalStore
from pipeline.storage.locks import Lease
from pipeline.storage.open import open_store


@checked(max_bad=(0, 1))
def prepare(
    source: Source,
    out: str | Path,
    options: Options,
    *,
    executor: Executor | None = None,
    max_bad: float = 0.01,
    on_progress: OnProgress = no_progress,
    scratch: Path | None = None,
    force: bool = False,
    take_over: bool = False,
) -> Manifest:
    """Make a dataset at `out`, or complete one that an earlier call left unfinished.

    Args:
        source: Source to prepare, from `read_source`.
        out: A new or empty folder, or one with the same job unfinished or complete; local or in a bucket.
        options: Size, quality, seed and limits.
        executor: Executor of the tasks; None means one worker process on this machine. The bytes of the
            dataset do not depend on it.
        max_bad: Share of undecodable images, 0..1, above which the job fails.
        on_progress: Called with (images done, images in all).
        scratch: Local folder for spooled sources and for shards before their upload to a bucket. None means
            a folder in `out` if that is local, else in the system's temporary folder.
        force: Replace a dataset or an unfinished job in `out`. Files of others there stay.
        take_over: Go on in place of a job or slice that is working in `out`, which then stops.

    Returns:
        The manifest, also written to `out/manifest.json`.

    Raises:
        UsageError: `out` holds other files, is the source, or holds a job with another source,
            option, seed or library version.
        LockedError: Another job or slice is working in `out`.
        TakenOverError: Another job has taken over `out`.
        RunError: Too many bad images, a class or split without images, a full disk, a dead worker.
    """
    store, origin = open_output(out, source.root, force=force)
    if store.is_file(FILE_NAME) and not force:  # is only read, so it needs no lock
        manifest = merged(store, source, options)
        remove_work(store)
        return manifest
    source = replace(source, root=origin.url)
    with whole_job(store, take_over=take_over) as lease:
        if force:
            remove_earlier(store, make_plan(source, options)[0])
        if store.is_file(FILE_NAME):  # made by the job that held the lock before
            manifest = merged(store, source, options)
        else:
            if isinstance(store, LocalStore):
                store.remove_leftovers()  # of killed writers: they take room that this run may need
            plan = agreed_plan(store, source, options)
            job = _job(origin, store, plan, scratch, lease)
            try:
                _make_shards(job, plan, plan.shards, executor, max_bad, on_progress)
                manifest = merge(store, plan, max_bad, "run the same command again to complete it", lease)
            except BadImagesError:
                forget_skips(store, plan.shards)
                raise
            except (ToolkitError, OSError):
                # A bucket has no locks: another run of this job may have completed the dataset meanwhile.
                if store.local is not None or not store.is_file(FILE_NAME):
                    raise
                manifest = merged(store, source, options)
            shutil.rmtree(job.scratch, ignore_errors=True)
    remove_work(store)
    return manifest


@checked(max_bad=(0, 1))
def prepare_slice(
    source: str | Path,
    out: str | Path,
    options: Options,
    index: int,
    count: int,
    *,
    read_with: SourceOptions = AS_FOUND,
    executor: Executor | None = None,
    max_bad: float = 0.01,
    on_progress: OnProgress = no_progress,
    scratch: Path | None = None,
    take_over: bool = False,
) -> int:
    """Make one slice of a dataset's shards: every `count`-th shard, starting with the `index`-th.

    Several machines can make a dataset together, one slice each. The first slice to start lists the source
    and stores the plan in `out`; the others read it there. When all slices are done, `finish` merges them.

    Args:
        source: Path or URL of the source; see `read_source`.
        out: Folder of the dataset; see `prepare`.
        options: Size, quality, seed and limits.
        index: Number of this slice, 0..count-1.
        count: Number of slices.
        read_with: How the source is read; see `read_source`.
        executor: See `prepare`.
        max_bad: Share of all images of the job, 0..1; the slice fails if it alone skips more.
        on_progress: Called with (images done, images in this slice).
        scratch: See `prepare`.
        take_over: Go on in place of the same slice, or of a whole job, which then stops.

    Returns:
        The number of shards in this slice.

    Raises:
        UsageError: `index` outside 0..count-1; a stored plan with another source, option or library version;
            the dataset is complete already.
        LockedError: The same slice, or a whole job, is working in `out`.
        RunError: See `prepare`.
    """
    if not 0 <= index < count:
        numbers = f"tasks of {count} are numbered 0 to {count - 1}" if count else "there are no tasks"
        raise UsageError(f"--task {index}/{count}: {numbers}")
    store, origin = open_output(out, source)
    _refuse_complete(store)
    with one_slice(store, index, count, take_over=take_over) as lease:
        _refuse_complete(store)  # by a `finish` that held the lock before

        def agree() -> None:
            agreed_plan(store, read_source(origin.url, read_with), options)

        make_plan_once(store, agree)
        plan = read_plan(store)
        check_slice(store, plan, origin, options, read_with)
        shards = plan.shards[index::count]
        forget_skips(store, shards)  # files may have been repaired before the task was submitted again
        job = _job(origin, store, plan, scratch, lease)
        gave_up = _make_shards(job, plan, shards, executor, max_bad, on_progress, index / count)
    if gave_up:
        raise RunError(
            f"{store}: task {index} of {count} alone skipped more images than --max-bad {max_bad:.2%} of "
            "all images; raise --max-bad to leave them out, or repair them, and submit the tasks again"
        )
    return len(shards)


@checked(max_bad=(0, 1))
def finish(out: str | Path, *, max_bad: float = 0.01, take_over: bool = False) -> Manifest:
    """Merge the slices of a job into a dataset: write its statistics, report and manifest.

    Args:
        out: Folder of the dataset, local or in a bucket.
        max_bad: Share of undecodable images, 0..1, above which it fails.
        take_over: Merge although a slice is running, which then stops.

    Returns:
        The manifest; that of a dataset that is complete already is only read.

    Raises:
        UsageError: No job was started at `out`.
        LockedError: One of its slices is still running.
        RunError: A shard is unfinished, too many images were bad, or a class or split lost all its images.
    """
    store = absolute(open_store(out))
    if store.is_file(FILE_NAME):
        manifest = read_manifest(store)
    else:
        read_plan(store)  # raises where there is no plan, before the lock would create a folder
        with whole_job(store, take_over=take_over) as lease:
            if store.is_file(FILE_NAME):
                manifest = read_manifest(store)
            else:
                remedy = "submit the tasks that make them again"
                manifest = merge(store, read_plan(store), max_bad, remedy, lease)
    remove_work(store)
    return manifest


def _make_shards(
    job: ShardJob,
    plan: Plan,
    shards: Sequence[ShardSummary],
    executor: Executor | None,
    max_bad: float,
    on_progress: OnProgress,
    start: float = 0.0,
) -> bool:
    """Make the unfinished ones of `shards`, after the containers that need it are spooled.

    Args:
        job: Folders of source, dataset and scratch files.
        plan: Plan of the whole job.
        shards: Shards to make.
        executor: Executor of the tasks; None means one worker process on this machine.
        max_bad: Share of all images of the job that may be bad.
        on_progress: Called with (images done, images in `shards` and, with `drop_duplicates`, to be hashed).
        start: Where to begin with what all slices need, containers to spool and shards to hash, as a share
            (0..1) of them. Slices begin at different places, and so share the work.

    Returns:
        Whether it stopped early because too many images were bad.
    """
    executor = executor or LocalExecutor()
    total = sum(shard.samples for shard in shards)
    if plan.options.drop_duplicates:
        total += _hash_held_out(job, plan, shards, executor, on_progress, start)
    done = finished(job.out)
    todo = {shard.name: shard.samples for shard in shards if shard.name not in done}
    if not todo:
        return False
    _spool(job, plan, executor, start)
    show = counted(on_progress, total, total - sum(todo.values()))
    skipped = images = 0
    with closing(executor.run(partial(run_shard, job), list(todo), show)) as results:
        for result in results:
            skipped += result.skipped
            images += todo[result.name]
            if not executor.reports_progress:
                show(images)
            if too_many_bad(plan, skipped, max_bad):
                return True  # the remaining shards cannot change that
    return False


def _hash_held_out(
    job: ShardJob,
    plan: Plan,
    shards: Sequence[ShardSummary],
    executor: Executor,
    on_progress: OnProgress,
    start: float,
) -> int:
    """Hash the files of held-out shards, unless an earlier run or another slice has read all of them.

    Those of `shards` that were compared with other digests, because a file could not be read at that time,
    are unfinished then.

    Returns:
        The number of images that were to be hashed.
    """
    todo = unhashed(job.out, held_out_shards(plan))
    ahead = sum(shard.samples for shard in todo)
    if todo:
        _spool(job, plan, executor, start)
        show = counted(on_progress, ahead + sum(shard.samples for shard in shards))
        names = _rotated([shard.name for shard in todo], start)
        images = 0
        for hashed in executor.run(partial(run_hash, job), names, show):
            images += hashed
            if not executor.reports_progress:
                show(images)
    forget_outdated(job.out, shards, HeldOut(job.out, plan).checksum)
    return ahead


def _spool(job: ShardJob, plan: Plan, executor: Executor, start: float) -> None:
    """Spool the containers that need it and are not spooled on this machine."""
    packed = [numbered for numbered in enumerate(plan.containers) if needs_spool(numbered[1])]
    for _ in executor.run(partial(run_spool, job), _rotated(packed, start)):
        pass


def _rotated(items: list[Item], start: float) -> list[Item]:
    """Return the items beginning at a share (0..1) of them, and those before it at the end."""
    first = int(len(items) * start)
    return items[first:] + items[:first]


def _job(source: Store, out: Store, plan: Plan, scratch: Path | None, lease: Lease | None) -> ShardJob:
    """Return the job with a scratch folder of its own, so that jobs never read each other's spooled files."""
    if scratch is None and out.local is not None:
        folder = out.local / WORK / "scratch"
    else:
        name = hashlib.sha256(f"{plan.digest}{source.url}{out.url}".encode()).hexdigest()[:16]
        above = scratch or Path(tempfile.gettempdir())
        folder = above.absolute() / f"alexnet-prep-{os.getuid()}-{name}"
    return ShardJob(source, out, folder, lease)


def _refuse_complete(out: Store) -> None:
    if out.is_file(FILE_NAME):
        raise UsageError(f"{out}: is complete already; nothing is left to prepare")
