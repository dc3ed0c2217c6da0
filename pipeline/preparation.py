"""The preparation job: plan, run every unfinished task in a process pool, merge, write the manifest.

Killed at any moment, it leaves whole shards and no manifest; the same call completes the rest.
"""

import csv
import fcntl
import io
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from pipeline.errors import RunError, UsageError
from pipeline.files import make_folder, remove_leftovers, write_array, write_bytes
from pipeline.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    MEAN_IMAGE,
    ImageFormat,
    Manifest,
    SourceInfo,
    read_manifest,
    to_json,
    write_manifest,
)
from pipeline.moments import Moments
from pipeline.plan import Options, Plan, ShardPlan, make_plan, read_plan, refuse_difference
from pipeline.shards import Shard, check_size
from pipeline.sources import ClassInfo, Source
from pipeline.statistics import mean_image_of, statistics_of
from pipeline.task import PARTS, Incident, Part, forget, is_finished, read_part, run_task

REPORT = "report.csv"
_WORK = ".work"
_POLL_SECONDS = 0.2

Progress = Callable[[int, int], None]
"""Called with (pictures handled, pictures in all)."""


def prepare(
    source: Source,
    out: Path,
    options: Options,
    *,
    workers: int = 1,
    max_bad: float = 0.01,
    progress: Progress | None = None,
) -> Manifest:
    """Make a dataset at `out`, or complete one that an earlier call left unfinished.

    The workers are new interpreters: a script that calls this needs `if __name__ == "__main__":`.

    Args:
        source: what to prepare.
        out: a new or empty folder, or one that holds this very job.
        options: size, quality, seed and limits.
        workers: processes; the bytes do not depend on it.
        max_bad: share of undecodable pictures above which the job fails.
        progress: told how far the job is, some five times a second.

    Returns:
        The manifest, also written to `out/manifest.json`.

    Raises:
        UsageError: `out` holds something else, or the same job with other input.
        RunError: too many bad pictures, a full disk, a dead worker.
    """
    if out.resolve() == source.root.resolve() or source.root.resolve() in out.resolve().parents:
        raise UsageError(f"output {out} lies inside the source {source.root}; choose another folder")
    _refuse_foreign(out)
    plan = make_plan(source, options)
    if (out / FILE_NAME).is_file():
        return _already_complete(out, plan)
    folders = {out, out / _WORK, out / PARTS, *((out / shard.name).parent for shard in plan.shards)}
    for folder in folders:
        make_folder(folder)
    with _only_job(out):
        if (out / FILE_NAME).is_file():  # another job finished while this one made its plan
            return _already_complete(out, plan)
        for folder in folders:
            remove_leftovers(folder)
        _store_or_compare(out, plan)
        _run_tasks(source.root, out, plan, workers, max_bad, progress)
        return finish(out, plan, max_bad=max_bad)


def finish(out: Path, plan: Plan, *, max_bad: float) -> Manifest:
    """Merge the finished parts of `plan` into statistics, report and manifest.

    Raises:
        RunError: a shard is unfinished, too many pictures were bad, or a class lost all its pictures.
    """
    moments = Moments() if plan.options.keep_aspect else Moments.for_square(plan.options.size)
    parts: list[tuple[ShardPlan, Part]] = []
    for shard in plan.shards:
        if found := read_part(out, shard):
            parts.append((shard, found[0]))
            moments.merge(found[1])
    incidents = [incident for _, part in parts for incident in part.incidents]
    write_bytes(out / REPORT, _report_csv(incidents))
    if _too_many_bad(plan, incidents, max_bad):
        _forget_skips(out, parts)
        raise RunError(_bad_message(out, plan, incidents, max_bad))
    if len(parts) < len(plan.shards):
        raise RunError(
            f"{out}: {len(parts)} of {len(plan.shards)} shards are finished; "
            "run the same command again to complete it"
        )
    splits = _shards_by_split(parts)
    _refuse_lost(plan, parts, splits)
    if not plan.options.keep_aspect:
        write_array(out / MEAN_IMAGE, mean_image_of(moments))
    settings = asdict(plan.options)
    manifest = Manifest(
        format=FORMAT_VERSION,
        image=ImageFormat(
            size=settings.pop("size"),
            mode="aspect" if settings.pop("keep_aspect") else "square",
            quality=settings.pop("quality"),
        ),
        classes=tuple(ClassInfo(*pair) for pair in plan.classes),
        label_width=plan.label_width,
        splits=splits,
        statistics=statistics_of(moments),
        seed=settings.pop("seed"),
        source=SourceInfo(plan.layout, plan.fingerprint),
        settings=settings,
        versions=plan.versions,
    )
    write_manifest(out, manifest)
    shutil.rmtree(out / _WORK)
    return manifest


def read_report(out: Path) -> list[dict[str, str]]:
    """Rows of `report.csv`: path, reason and action ("skipped" or "repaired")."""
    with (out / REPORT).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"output {out}: it is a file; name a new folder")
    known = (out / FILE_NAME, out / _WORK)
    if out.is_dir() and any(out.iterdir()) and not any(path.exists() for path in known):
        raise UsageError(f"output {out}: holds other files; name a new or empty folder")


def _already_complete(out: Path, plan: Plan) -> Manifest:
    manifest = read_manifest(out)
    made_with = manifest.settings | {
        "size": manifest.image.size,
        "keep_aspect": manifest.image.mode == "aspect",
        "quality": manifest.image.quality,
        "seed": manifest.seed,
    }
    # A finished dataset stays good when a library is updated, so versions are not compared.
    refuse_difference(plan, made_with, manifest.source.fingerprint, plan.versions, out)
    for shards in manifest.splits.values():
        for shard in shards:
            check_size(out, shard)
    if (out / _WORK).exists():
        shutil.rmtree(out / _WORK)
    return manifest


def _store_or_compare(out: Path, plan: Plan) -> None:
    path = out / _WORK / "plan.json"
    if path.is_file():
        old = read_plan(path)
        refuse_difference(plan, asdict(old.options), old.fingerprint, old.versions, out)
    else:
        write_bytes(path, to_json(plan))


@contextmanager
def _only_job(out: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel drops it when the process ends, however it ends."""
    with (out / _WORK / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another job is writing to {out}; wait for it or stop it") from None
        yield


def _run_tasks(
    source: Path, out: Path, plan: Plan, workers: int, max_bad: float, progress: Progress | None
) -> None:
    total = sum(len(shard.samples) for shard in plan.shards)
    todo = [shard for shard in plan.shards if not is_finished(out, shard)]
    already = total - sum(len(shard.samples) for shard in todo)
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    counter: Synchronized[int] = context.Value("q", 0)
    pool = ProcessPoolExecutor(
        min(workers, len(todo)), context, initializer=_start_worker, initargs=(counter,)
    )
    skipped = 0
    try:
        pending: set[Future[int]] = {
            pool.submit(_run_one, source, out, shard, plan.options, plan.label_width) for shard in todo
        }
        # Too many bad pictures: no need to read the rest to know; `finish` says so.
        while pending and skipped <= max_bad * total:
            finished, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            skipped += sum(future.result() for future in finished)
            if progress:
                progress(already + counter.value, total)
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process died (killed, or out of memory); finished shards are kept: "
            "run the same command again, with fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# Set in each worker process; shared with the parent, which shows it as progress.
_counter: "Synchronized[int] | None" = None


def _start_worker(counter: "Synchronized[int]") -> None:
    global _counter
    _counter = counter
    # Ctrl-C reaches the whole group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent is killed: it would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _count_picture() -> None:
    if _counter is not None:
        with _counter.get_lock():
            _counter.value += 1


def _run_one(source: Path, out: Path, shard: ShardPlan, options: Options, label_width: int) -> int:
    """In a worker: run one task and return how many pictures it skipped."""
    part = run_task(source, out, shard, options, label_width, _count_picture)
    return sum(incident.action == "skipped" for incident in part.incidents)


def _shards_by_split(parts: list[tuple[ShardPlan, Part]]) -> dict[str, tuple[Shard, ...]]:
    splits: dict[str, list[Shard]] = {}
    for shard, part in parts:
        if part.shard is not None:
            splits.setdefault(shard.split, []).append(part.shard)
    return {split: tuple(shards) for split, shards in splits.items()}


def _too_many_bad(plan: Plan, incidents: list[Incident], max_bad: float) -> bool:
    skipped = sum(incident.action == "skipped" for incident in incidents)
    return skipped > max_bad * sum(len(shard.samples) for shard in plan.shards)


def _forget_skips(out: Path, parts: list[tuple[ShardPlan, Part]]) -> None:
    """Have shards with skipped pictures made again by the next run: a file may be readable by then."""
    for shard, part in parts:
        if any(incident.action == "skipped" for incident in part.incidents):
            forget(out, shard)


def _bad_message(out: Path, plan: Plan, incidents: list[Incident], max_bad: float) -> str:
    skipped = [incident for incident in incidents if incident.action == "skipped"]
    total = sum(len(shard.samples) for shard in plan.shards)
    first = min(skipped, key=lambda i: i.path)
    return (
        f"{len(skipped)} of {total} pictures cannot be decoded, more than --max-bad {max_bad:.2%} (first: "
        f"{first.path}: {first.reason}); see {out / REPORT}, then raise --max-bad to leave them out, or mend "
        "them and prepare into a new folder"
    )


def _refuse_lost(
    plan: Plan, parts: list[tuple[ShardPlan, Part]], splits: dict[str, tuple[Shard, ...]]
) -> None:
    """Skipping may have emptied a class of its training pictures, or a whole split."""
    trained = {label for shard, part in parts if shard.split == "train" for label in part.labels}
    lost = [name for label, (name, _) in enumerate(plan.classes) if label not in trained]
    if lost:
        raise RunError(
            f"no decodable training pictures are left for {', '.join(lost[:5])}; "
            "mend the files that report.csv names, or remove the class"
        )
    empty = {s.split for s in plan.shards} - splits.keys()
    if empty:
        raise RunError(f"no decodable pictures are left in {', '.join(sorted(empty))}; see report.csv")


def _report_csv(incidents: list[Incident]) -> bytes:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "reason", "action"))
    rows.writerows((i.path, i.reason, i.action) for i in sorted(incidents, key=lambda i: i.path))
    return text.getvalue().encode("utf-8", "surrogateescape")
