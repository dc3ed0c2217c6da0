"""Last step of preparation: merge the shards' results into statistics, report and manifest."""

import hashlib
import io
from dataclasses import asdict

import numpy as np

from pipeline.dataset.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    MEAN_IMAGE,
    ClassInfo,
    ImageFormat,
    Manifest,
    Shard,
    SourceInfo,
    to_json,
)
from pipeline.dataset.report import REPORT, ReportRow, report_csv
from pipeline.dataset.work import WORK
from pipeline.errors import RunError
from pipeline.images.statistics import Moments, mean_image_of, statistics_of
from pipeline.sharding.plan import Plan, ShardSummary
from pipeline.sharding.task import ShardResult, finished, forget, last_name, read_result, refuse_versions
from pipeline.storage.base import Store


class BadImagesError(RunError):
    """Too many images were skipped, or all images of a class or split."""


def merge(out: Store, plan: Plan, max_bad: float, remedy: str) -> Manifest:
    """Merge the results of a plan's shards into statistics, report and manifest; remove `.work`.

    Args:
        out: Folder of the dataset, local or in a bucket.
        plan: Plan of the job.
        max_bad: Share of undecodable images, 0..1, above which it fails.
        remedy: What the user should do if shards are missing; ends the error message.

    Returns:
        The manifest, also written to `out`.

    Raises:
        BadImagesError: Too many images were bad, or a class or split lost all its images.
        RunError: A shard is unfinished, or results were made for another plan or with other library versions.
    """
    moments = Moments.for_square(plan.options.size) if plan.options.mode == "square" else Moments()
    done = finished(out)
    results: list[tuple[ShardSummary, ShardResult]] = []
    for shard in plan.shards:
        if last_name(shard.name) in done:
            result, sums = read_result(out, shard.name)
            _refuse_other_plan(out, plan, result)
            refuse_versions(out, plan, result.versions, shard.name)
            results.append((shard, result))
            moments.merge(sums)
    report_rows = [report_row for _, result in results for report_row in result.report_rows]
    bad = too_many_bad(plan, sum(result.skipped for _, result in results), max_bad)
    if len(results) < len(plan.shards) and not bad:
        missing = next(shard.name for shard in plan.shards if last_name(shard.name) not in done)
        raise RunError(
            f"{out}: {len(results)} of {len(plan.shards)} shards are finished (missing: {missing}, ...); "
            f"{remedy}"
        )
    out.write(REPORT, report_csv(report_rows))
    if bad:
        raise BadImagesError(_bad_message(out, plan, report_rows, max_bad))
    splits = _shards_by_split(results)
    _refuse_lost(plan, results, splits)
    checksum = None
    if plan.options.mode == "square":
        mean_image = io.BytesIO()
        np.save(mean_image, mean_image_of(moments))
        out.write(MEAN_IMAGE, mean_image.getvalue())
        checksum = hashlib.sha256(mean_image.getvalue()).hexdigest()
    manifest = _manifest(plan, splits, moments, checksum)
    out.write(FILE_NAME, to_json(manifest))
    out.remove(WORK)
    return manifest


def too_many_bad(plan: Plan, skipped: int, max_bad: float) -> bool:
    """Whether `skipped` images are more than the share `max_bad` of all images of the job."""
    return skipped > max_bad * plan.samples


def _manifest(
    plan: Plan, splits: dict[str, tuple[Shard, ...]], moments: Moments, mean_image_sha256: str | None
) -> Manifest:
    settings = asdict(plan.options)
    del settings["keep_aspect"], settings["keep_original"]
    return Manifest(
        format=FORMAT_VERSION,
        image=ImageFormat(size=settings.pop("size"), mode=plan.options.mode, quality=settings.pop("quality")),
        classes=tuple(ClassInfo(*pair) for pair in plan.classes),
        label_width=plan.label_width,
        splits=splits,
        statistics=statistics_of(moments),
        seed=settings.pop("seed"),
        source=SourceInfo(plan.layout, plan.fingerprint),
        settings=settings,
        versions=plan.versions,
        mean_image_sha256=mean_image_sha256,
    )


def _shards_by_split(results: list[tuple[ShardSummary, ShardResult]]) -> dict[str, tuple[Shard, ...]]:
    splits: dict[str, list[Shard]] = {}
    for shard, result in results:
        if result.shard is not None:
            splits.setdefault(shard.split, []).append(result.shard)
    return {split: tuple(shards) for split, shards in splits.items()}


def forget_skips(out: Store, plan: Plan) -> None:
    """Mark finished shards with skipped images as unfinished: the files may be readable in the next run."""
    done = finished(out)
    for shard in plan.shards:
        if last_name(shard.name) in done and read_result(out, shard.name)[0].skipped:
            forget(out, shard.name)


def _refuse_other_plan(out: Store, plan: Plan, result: ShardResult) -> None:
    if result.plan != plan.digest:
        raise RunError(
            f"{out}: {result.name} was made for another plan, by a job that ran at the same time; remove "
            f"{out} and start again, one job at a time"
        )


def _bad_message(out: Store, plan: Plan, report_rows: list[ReportRow], max_bad: float) -> str:
    skipped = [report_row for report_row in report_rows if report_row.action == "skipped"]
    first = min(skipped, key=lambda i: i.path)
    return (
        f"{len(skipped)} of {plan.samples} images cannot be decoded, more than --max-bad {max_bad:.2%} "
        f"(first: {first.path}: {first.reason}); see {out.url_of(REPORT)}, then raise --max-bad to leave "
        "them out, or repair them and prepare into a new folder"
    )


def _refuse_lost(
    plan: Plan, results: list[tuple[ShardSummary, ShardResult]], splits: dict[str, tuple[Shard, ...]]
) -> None:
    """Raise BadImagesError if a class has no training images left, or a split no images."""
    trained = {label for shard, result in results if shard.split == "train" for label in result.labels}
    lost = [name for label, (name, _) in enumerate(plan.classes) if label not in trained]
    if lost:
        raise BadImagesError(
            f"no decodable training images are left for {', '.join(lost[:5])}; "
            "repair the files that report.csv names, or remove the class"
        )
    empty = {s.split for s in plan.shards} - splits.keys()
    if empty:
        raise BadImagesError(f"no decodable images are left in {', '.join(sorted(empty))}; see report.csv")
