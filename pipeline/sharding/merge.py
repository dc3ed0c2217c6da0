"""Last step of preparation: merge the shards' results into statistics, report and manifest."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pipeline.dataset.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    MEAN_IMAGE,
    ClassInfo,
    Duplicates,
    ImageFormat,
    Manifest,
    Shard,
    SourceInfo,
    read_manifest,
    to_json,
)
from pipeline.dataset.report import REPORT, ReportRow, report_csv
from pipeline.dataset.shards import check_sizes
from pipeline.errors import RunError
from pipeline.images.statistics import Moments, mean_image_of, statistics_of
from pipeline.sharding.duplicates import HeldOut, find_duplicates
from pipeline.sharding.plan import Options, Plan, read_left_out, refuse_difference, shown_options
from pipeline.sharding.result import ShardResult, digests_file, read_results
from pipeline.sources.base import Source
from pipeline.storage.base import Store
from pipeline.storage.local import LocalStore
from pipeline.storage.locks import Lease

# Options with a field of their own in the manifest; the others are in its `settings`.
_FIELDS: dict[str, Callable[[Manifest], Any]] = {
    "size": lambda manifest: manifest.image.size,
    "keep_aspect": lambda manifest: manifest.image.mode == "aspect",
    "keep_original": lambda manifest: manifest.image.mode == "original",
    "quality": lambda manifest: manifest.image.quality,
    "seed": lambda manifest: manifest.seed,
}


class BadImagesError(RunError):
    """Too many images were skipped, or all images of a class or split."""


def merge(out: Store, plan: Plan, max_bad: float, remedy: str, lease: Lease | None = None) -> Manifest:
    """Merge the results of a plan's shards into statistics, report and manifest.

    It removes the temporary files that killed processes left.

    Args:
        out: Folder of the dataset, local or in a bucket.
        plan: Plan of the job.
        max_bad: Share of undecodable images, 0..1, above which it fails.
        remedy: What the user should do if shards are missing; ends the error message.
        lease: Shows that this process still holds the folder's lock; None where it has none.

    Returns:
        The manifest, also written to `out`.

    Raises:
        BadImagesError: Too many images were bad, or a class or split lost all its images.
        RunError: A shard is unfinished, or results were made for another plan or with other library versions;
            a file of "val" or "test" was unreadable when it was to be hashed for `drop_duplicates`.
    """
    if isinstance(out, LocalStore):  # in a bucket, killed writers leave no temporary files
        out.remove_leftovers()
    square = plan.options.mode == "square"
    trains = any(shard.split == "train" for shard in plan.shards)
    moments = Moments.for_square(plan.options.size) if square else Moments()
    results: list[ShardResult] = []
    for result, sums in read_results(out, plan):
        results.append(result)
        moments.merge(sums)
    report_rows = [report_row for result in results for report_row in result.report_rows]
    bad = too_many_bad(plan, sum(result.skipped for result in results), max_bad)
    if len(results) < len(plan.shards) and not bad:
        done = {result.name for result in results}
        missing = next(shard.name for shard in plan.shards if shard.name not in done)
        raise RunError(
            f"{out}: {len(results)} of {len(plan.shards)} shards are finished (missing: {missing}, ...); "
            f"{remedy}"
        )
    duplicates = None
    if not bad:
        duplicates, more_rows = _compare(out, plan, results, remedy)
        report_rows += more_rows
    if lease:
        lease.check()
    out.write(REPORT, report_csv([*report_rows, *read_left_out(out)]))
    if bad:
        raise BadImagesError(_bad_message(out, plan, report_rows, max_bad))
    splits: dict[str, tuple[Shard, ...]] = {}
    for result in results:
        if result.shard is not None:
            splits[result.split] = (*splits.get(result.split, ()), result.shard)
    _refuse_lost(plan, results, splits)
    checksum = None
    if square and trains:
        mean_image = io.BytesIO()
        np.save(mean_image, mean_image_of(moments))
        out.write(MEAN_IMAGE, mean_image.getvalue())
        checksum = hashlib.sha256(mean_image.getvalue()).hexdigest()
    options = plan.options
    manifest = Manifest(
        format=FORMAT_VERSION,
        image=ImageFormat(size=options.size, mode=options.mode, quality=options.quality),
        classes=tuple(ClassInfo(*pair) for pair in plan.classes),
        label_width=plan.label_width,
        splits=splits,
        statistics=statistics_of(moments) if trains else None,
        seed=options.seed,
        source=SourceInfo(plan.layout, plan.fingerprint),
        settings={
            name: value
            for name, value in (shown_options(plan.read_with) | asdict(options)).items()
            if name not in _FIELDS
        },
        versions=plan.versions,
        mean_image_sha256=checksum,
        duplicates=duplicates,
    )
    out.write(FILE_NAME, to_json(manifest))
    return manifest


def merged(out: Store, source: Source, options: Options) -> Manifest:
    """Return the manifest of a complete dataset, after a check that it is of this source and these options.

    Library versions are not compared: a finished dataset stays valid when a library is updated.

    Raises:
        UsageError: The source or an option differs, or a shard or index is missing or has another size.
    """
    manifest = read_manifest(out)
    made_with = manifest.settings | {name: field(manifest) for name, field in _FIELDS.items()}
    wanted = shown_options(source.options) | asdict(options) | {"fingerprint": source.fingerprint()}
    refuse_difference(wanted, made_with | {"fingerprint": manifest.source.fingerprint}, out)
    check_sizes(out, manifest.shards)
    return manifest


def too_many_bad(plan: Plan, skipped: int, max_bad: float) -> bool:
    """Whether `skipped` images are more than the share `max_bad` of all images of the job."""
    return skipped > max_bad * plan.samples


def _bad_message(out: Store, plan: Plan, report_rows: list[ReportRow], max_bad: float) -> str:
    skipped = [report_row for report_row in report_rows if report_row.action == "skipped"]
    first = min(skipped, key=lambda i: i.path)
    return (
        f"{len(skipped)} of {plan.samples} images cannot be decoded, more than --max-bad {max_bad:.2%} "
        f"(first: {first.path}: {first.reason}); see {out.url_of(REPORT)}, then raise --max-bad to leave "
        "them out, or repair them and prepare into a new folder"
    )


def _compare(
    out: Store, plan: Plan, results: list[ShardResult], remedy: str
) -> tuple[Duplicates, list[ReportRow]]:
    """Count the images with the same bytes, and return the rows for report.csv.

    Raises:
        RunError: With `drop_duplicates`, training shards were compared with fewer held-out files than are in
            the dataset; or digests are missing or damaged.
    """
    files = [digests_file(result.name) for result in results]
    found, rows = find_duplicates(out, plan, files)
    if plan.options.drop_duplicates:
        checksum = HeldOut(out, plan).checksum
        outdated = any(r.split == "train" and r.held_out != checksum for r in results)
        if outdated or any(found.in_train.values()):
            raise RunError(
                f"{out}: images of val or test were unreadable when --drop-duplicates hashed them, and are "
                f"readable now; {remedy}"
            )
    return replace(found, dropped=sum(result.dropped for result in results)), rows


def _refuse_lost(plan: Plan, results: list[ShardResult], splits: dict[str, tuple[Shard, ...]]) -> None:
    """Raise BadImagesError if a class has no training images left, or a split no images."""
    trained = {label for result in results if result.split == "train" for label in result.labels}
    lost = [name for label, (name, _) in enumerate(plan.classes) if label not in trained]
    if lost and any(shard.split == "train" for shard in plan.shards):
        way_on = "or remove the class" + (", or --drop-duplicates" if plan.options.drop_duplicates else "")
        raise BadImagesError(
            f"no decodable training images are left for {', '.join(lost[:5])}; "
            f"repair the files that report.csv names, {way_on}"
        )
    empty = {s.split for s in plan.shards} - splits.keys()
    if empty:
        raise BadImagesError(f"no decodable images are left in {', '.join(sorted(empty))}; see report.csv")
