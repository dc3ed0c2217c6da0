"""The preparation job: plan, run every unfinished task on an engine, merge.

Killed at any moment, it leaves whole shards and no manifest; the same call completes the rest.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from pipeline.dataset.manifest import FILE_NAME, Manifest, read_manifest
from pipeline.dataset.tar import check_sizes
from pipeline.dataset.work import WORK, versions
from pipeline.errors import RunError, ToolkitError, UsageError
from pipeline.executors.base import Executor
from pipeline.executors.local import LocalExecutor
from pipeline.sharding.merge import BadImagesError, forget_skips, merge, too_many_bad
from pipeline.sharding.plan import (
    PLAN,
    Options,
    Plan,
    ShardSummary,
    identity,
    make_plan,
    option_names,
    read_plan,
    refuse_difference,
    store_plan,
)
from pipeline.sharding.task import ShardJob, finished, last_name, run_shard, run_spool
from pipeline.sources.base import Source
from pipeline.sources.detection import read_source
from pipeline.sources.spool import needs_spool
from pipeline.storage.base import Store
from pipeline.storage.local import LocalStore
from pipeline.storage.locks import lock
from pipeline.storage.open import open_store

Progress = Callable[[int, int], None]
"""Called with (images handled, images in all)."""


def prepare(
    source: Source,
    out: str | Path,
    options: Options,
    *,
    engine: Executor | None = None,
    max_bad: float = 0.01,
    progress: Progress | None = None,
    scratch: Path | None = None,
) -> Manifest:
    """Make a dataset at `out`, or complete one that an earlier call left unfinished.

    Args:
        source: what to prepare.
        out: a new or empty folder, or one that holds this very job; here or in a bucket.
        options: size, quality, seed and limits.
        engine: where tasks run; one process on this machine where none is given. The bytes do not
            depend on it.
        max_bad: share of undecodable images above which the job fails.
        progress: told how far the job is.
        scratch: folder for shards on their way to a bucket and for sources that must be unpacked; in
            `out` where that is local, else in the system's temporary folder.

    Returns:
        The manifest, also written to `out/manifest.json`.

    Raises:
        UsageError: `out` holds something else, or the same job with other input.
        RunError: too many bad images, a full disk, a dead worker.
    """
    store, origin = _absolute(open_store(out)), _absolute(open_store(source.root))
    _refuse_inside(store, origin)
    _refuse_foreign(store)
    plan, shards = make_plan(replace(source, root=origin.url), options)
    if store.is_file(FILE_NAME):
        return _already_complete(store, plan)
    with _lock(store, "job"):
        if store.is_file(FILE_NAME):  # another job finished while this one made its plan
            return _already_complete(store, plan)
        _remove_leftovers(store)
        if store.is_file(PLAN):
            old = read_plan(store)
            refuse_difference(identity(plan), identity(old), store)
            plan = old  # which the parts are of; the source may lie elsewhere now
        else:
            store_plan(store, plan, shards)
        del shards  # the tasks read their own
        job = _job(origin, store, plan, scratch)
        try:
            _run(job, plan, plan.shards, engine or LocalExecutor(), max_bad, progress)
            _remove_leftovers(store)  # of workers that Ray has replaced
            manifest = merge(store, plan, max_bad, "run the same command again to complete it")
        except BadImagesError:
            forget_skips(store, plan)
            raise
        except (ToolkitError, OSError):
            # In a bucket, which has no locks, another run of this job may have been faster.
            if store.local is not None or not store.is_file(FILE_NAME):
                raise
            manifest = _already_complete(store, plan)
        shutil.rmtree(job.scratch, ignore_errors=True)
        return manifest


def prepare_slice(
    source: str | Path,
    out: str | Path,
    options: Options,
    index: int,
    count: int,
    *,
    layout: str = "auto",
    engine: Executor | None = None,
    max_bad: float = 0.01,
    progress: Progress | None = None,
    scratch: Path | None = None,
) -> int:
    """Make every `count`-th shard, from the `index`-th on, of a job that several machines share.

    The first one to come lists the source and stores the plan; the others take it from there. `finish`
    merges when all are through. Arguments are those of `read_source` and `prepare`.

    Returns:
        How many shards this slice holds.

    Raises:
        UsageError: an index outside 0..count-1; a plan of other options or libraries; the same slice
            running twice.
        RunError: see `prepare`.
    """
    if not 0 <= index < count:
        numbers = f"tasks of {count} are numbered 0 to {count - 1}" if count else "there are no tasks"
        raise UsageError(f"--task {index}/{count}: {numbers}")
    store, origin = _absolute(open_store(out)), _absolute(open_store(source))
    _refuse_inside(store, origin)
    _refuse_foreign(store)
    with _lock(store, "job", shared=True), _lock(store, f"task-{index}-of-{count}"):
        if store.is_file(FILE_NAME):
            raise UsageError(f"{store}: is complete already; nothing is left to prepare")
        plan = _shared_plan(store, origin, options, layout)
        mine = replace(plan, shards=plan.shards[index::count])
        forget_skips(store, mine)  # whoever submits a task again may have mended files
        job = _job(origin, store, plan, scratch)
        gave_up = _run(job, plan, mine.shards, engine or LocalExecutor(), max_bad, progress, index / count)
    if gave_up:
        raise RunError(
            f"{store}: task {index} of {count} alone skipped more images than --max-bad {max_bad:.2%} of "
            "all; raise --max-bad to leave them out, or mend them, and submit the tasks again"
        )
    return len(mine.shards)


def finish(out: str | Path, *, max_bad: float = 0.01) -> Manifest:
    """Merge what the slices of a job made into a dataset.

    Raises:
        UsageError: no job was begun at `out`, or one of its slices is still running.
        RunError: a shard is unfinished, too many images were bad, or a class lost all its images.
    """
    store = _absolute(open_store(out))
    if not store.is_file(FILE_NAME):
        read_plan(store)  # which says where there is none, before a lock makes a folder
    with _lock(store, "job") if not store.is_file(FILE_NAME) else nullcontext():
        if store.is_file(FILE_NAME):
            return read_manifest(store)
        _remove_leftovers(store)
        return merge(store, read_plan(store), max_bad, "submit the tasks that make them again")


def _shared_plan(store: Store, origin: Store, options: Options, layout: str) -> Plan:
    """The stored plan; the slice that comes first makes it, while the others wait."""
    with _lock(store, "plan", wait=True):
        if not store.is_file(PLAN):
            source = read_source(origin.url, layout, options.val_fraction, options.seed)
            plan, shards = make_plan(source, options)
            store_plan(store, plan, shards)
            return plan
    plan = read_plan(store)
    # Listing the source again in every slice would cost more than it tells: a file that changed since
    # is found by its size when it is read.
    wanted = option_names(asdict(options)) | versions()
    refuse_difference(wanted, identity(plan), store)
    if origin.url != plan.source:
        raise UsageError(f"{store}: was planned from {plan.source}, not {origin.url}; name the same source")
    for container in plan.containers:
        if (size := origin.size(container.path)) != container.size:
            raise UsageError(
                f"{origin.url_of(container.path)}: {size:,} bytes, but {container.size:,} when it was "
                "listed; restore it, or start again in another folder"
            )
    if layout not in ("auto", plan.layout):
        raise UsageError(f"{store}: was planned with --layout {plan.layout}, not {layout}")
    return plan


def _run(
    job: ShardJob,
    plan: Plan,
    shards: tuple[ShardSummary, ...],
    engine: Executor,
    max_bad: float,
    progress: Progress | None,
    start: float = 0.0,
) -> bool:
    """Unpack what must be, then make the shards of `shards` that are not finished.

    `start` says with which container to begin, as a share: slices then share the unpacking. Returns whether
    it gave up, because too many images are bad already.
    """
    done = finished(open_store(job.out))
    todo = [shard for shard in shards if last_name(shard.name) not in done]
    total = sum(shard.samples for shard in shards)
    already = total - sum(shard.samples for shard in todo)
    if not todo:
        return False
    packed = [number for number, container in enumerate(plan.containers) if needs_spool(container)]
    first = int(len(packed) * start)
    for _ in engine.run(partial(run_spool, job), packed[first:] + packed[:first]):
        pass

    def show(handled: int) -> None:
        if progress:
            progress(already + handled, total)

    names = [shard.name for shard in todo]
    skipped = written = 0
    with closing(engine.run(partial(run_shard, job), names, show)) as results:
        for result in results:
            skipped += result.skipped
            written += sum(result.labels.values())
            if not engine.reports_progress:
                show(written + skipped)
            if too_many_bad(plan, skipped, max_bad):
                return True  # no need to read the rest to know
    return False


def _job(source: Store, out: Store, plan: Plan, scratch: Path | None) -> ShardJob:
    """The job, with a scratch folder that no other job has: what is unpacked there is of this source."""
    if scratch is None and out.local is not None:
        folder = out.local / WORK / "scratch"
    else:
        name = hashlib.sha256(f"{plan.digest}{source.url}{out.url}".encode()).hexdigest()[:16]
        above = scratch or Path(tempfile.gettempdir())
        folder = above.absolute() / f"alexnet-prep-{os.getuid()}-{name}"
    return ShardJob(source.url, out.url, str(folder))


def _absolute(store: Store) -> Store:
    """Workers may run elsewhere."""
    return store if store.local is None else LocalStore(str(store.local.absolute()))


def _lock(out: Store, name: str, *, shared: bool = False, wait: bool = False) -> AbstractContextManager[None]:
    """Lock an output folder; a bucket has no locks, and two jobs there do the same work twice, unharmed."""
    return lock(out.local / WORK, name, shared=shared, wait=wait) if out.local else nullcontext()


def _remove_leftovers(store: Store) -> None:
    """Delete what killed writers left; in a bucket they leave nothing."""
    if isinstance(store, LocalStore):
        store.remove_leftovers()


def _refuse_inside(out: Store, source: Store) -> None:
    if out.local is None or source.local is None:
        inside = out.url.startswith(source.url.rstrip("/") + "/") or out.url == source.url
    else:
        below, above = out.local.resolve(), source.local.resolve()
        inside = below == above or above in below.parents
    if inside:
        raise UsageError(f"output {out} lies inside the source {source}; choose another folder")


def _refuse_foreign(out: Store) -> None:
    if out.local is not None and out.local.exists() and not out.local.is_dir():
        raise UsageError(f"output {out}: it is a file; name a new folder")
    names = out.names()
    if names and not names & {FILE_NAME, WORK}:
        raise UsageError(f"output {out}: holds other files; name a new or empty folder")


def _already_complete(out: Store, plan: Plan) -> Manifest:
    manifest = read_manifest(out)
    image = manifest.image
    made_with = manifest.settings | {
        "size": image.size,
        "keep_aspect": image.mode == "aspect",
        "keep_original": image.mode == "original",
        "quality": image.quality,
        "seed": manifest.seed,
    }
    # A finished dataset stays good when a library is updated, so versions are not compared.
    found = option_names(made_with) | {"fingerprint": manifest.source.fingerprint}
    wanted = option_names(asdict(plan.options)) | {"fingerprint": plan.fingerprint}
    refuse_difference(wanted, found, out)
    check_sizes(out, [shard for shards in manifest.splits.values() for shard in shards])
    out.remove(WORK)
    return manifest
