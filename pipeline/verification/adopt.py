"""Adopt tars that another tool wrote: make them a dataset without writing them again.

The tars must be WebDataset tars of images with integer labels. Each tar is read twice: first the headers and
labels of all tars, which must be valid before any image is decoded, then the images.
"""

import os
from pathlib import Path

from pipeline.arguments import POSITIVE, SIZES, checked
from pipeline.dataset.index import index_path, to_index
from pipeline.dataset.manifest import (
    ADOPTED,
    FILE_NAME,
    FORMAT_VERSION,
    MEAN_IMAGE,
    ClassInfo,
    Manifest,
    Shard,
    SourceInfo,
    write_manifest,
)
from pipeline.dataset.report import COLUMNS, REPORT, ReportRow, report_csv
from pipeline.dataset.tar import Member
from pipeline.dataset.work import WORK, versions
from pipeline.errors import RunError, UsageError
from pipeline.executors.base import Executor
from pipeline.images.statistics import Moments, mean_image_of, statistics_of
from pipeline.progress import OnProgress, no_progress
from pipeline.sources.base import Sample, Source, SourceOptions
from pipeline.sources.detection import read_source
from pipeline.storage.atomic import sha256_of, write_array, write_bytes
from pipeline.storage.base import ByteRange
from pipeline.storage.open import open_store
from pipeline.verification.external_tars import (
    REMEDY,
    ExternalTar,
    Measured,
    find_labels,
    measure,
)
from pipeline.verification.tasks import ONE_BY_ONE, run_tasks


@checked(size=SIZES, max_bad=(0, 1), max_megapixels=POSITIVE)
def adopt(
    folder: str | Path,
    *,
    size: int = 256,
    max_bad: float = 0.01,
    max_megapixels: float = 100.0,
    executor: Executor = ONE_BY_ONE,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Make a folder of WebDataset tars from another tool a dataset: write indexes, statistics and a manifest.

    The tars are not changed. A DALI index is written beside each tar and replaces an existing one; it leaves
    out images that do not decode, which `report.csv` lists. The manifest is written last. The labels in the
    tars become the dataset's labels, so they must be the integers 0 to K - 1 of K classes.

    Args:
        folder: Local folder that holds the tars, at any depth.
        size: Shorter side in pixels to which images are scaled on loading, if their shorter sides differ. If
            all are equal, images are used as they are.
        max_bad: Share of undecodable images, 0..1, above which the job fails.
        max_megapixels: Images with more megapixels count as undecodable.
        executor: Executor of the tasks, one for each tar.
        on_progress: Called with (images done, images in all).

    Returns:
        The manifest, with statistics of the decoded training images, if there are any.

    Raises:
        UsageError: The folder is in a bucket, is a dataset already, cannot be written or holds no tars; tars
            are damaged or compressed; labels are strings or leave gaps. See also
            `pipeline.sources.detection.read_source`.
        RunError: Too many bad images, a class or split that has no images left, or a failed write.
    """
    source, tars = _listed(folder)
    root = tars[0].root
    labels = run_tasks(executor, find_labels, tars, [len(tar.samples) for tar in tars])
    tars = [tar._replace(labels=spans) for tar, spans in zip(tars, labels, strict=True)]
    classes = _classes_by_label(source, tars)
    image, found = measure(executor, tars, size, max_megapixels, on_progress)
    _report(root, tars, found, max_bad)
    kept = [_without(tar, measured.skipped) for tar, measured in zip(tars, found, strict=True)]
    _refuse_lost(classes, kept)
    splits: dict[str, tuple[Shard, ...]] = {}
    for tar, measured in zip(kept, found, strict=True):
        if tar.samples:  # a tar whose images were all skipped is not a shard
            write_bytes(index_path(root / tar.name), _index(tar))
            splits[tar.split] = (*splits.get(tar.split, ()), measured.shard)
    trains = "train" in splits
    moments = Moments.for_square(image.size) if image.mode == "square" else Moments()
    for measured in found:
        moments.merge(measured.moments)
    checksum = None
    if image.mode == "square" and trains:
        write_array(root / MEAN_IMAGE, mean_image_of(moments))
        checksum = sha256_of(root / MEAN_IMAGE)
    manifest = Manifest(
        format=FORMAT_VERSION,
        image=image,
        classes=classes,
        label_width=len(str(len(classes) - 1)),
        splits=splits,
        statistics=statistics_of(moments, "decoded") if trains else None,
        seed=0,
        source=SourceInfo(ADOPTED, source.fingerprint()),
        settings={"max_megapixels": max_megapixels},
        versions=versions(),
        mean_image_sha256=checksum,
    )
    write_manifest(root, manifest)
    return manifest


def _listed(folder: str | Path) -> tuple[Source, list[ExternalTar]]:
    """List the tars; raise UsageError if they cannot be adopted."""
    store = open_store(folder)
    if store.local is None:
        raise UsageError(
            f"{folder}: tars in a bucket cannot be indexed in place; copy them here first (such as with "
            "`aws s3 sync` or `gcloud storage rsync`), and name the copy"
        )
    if not store.is_folder():
        raise UsageError(f"{folder}: no such folder; name the one that holds the tars")
    for name, reason in ((FILE_NAME, "is a dataset already"), (WORK, "holds an unfinished preparation")):
        if name in store.names():
            raise UsageError(
                f"{folder}: {reason} (it has {name}); only tars of other tools can be adopted: name another "
                "folder"
            )
    if REPORT in store.names() and not store.read(ByteRange(REPORT)).startswith(",".join(COLUMNS).encode()):
        raise UsageError(f"{folder}: has a {REPORT} of another kind, which would be replaced; move it away")
    source = read_source(folder, SourceOptions(layout="webdataset"))
    tars = _tars(store.local.absolute(), source)
    for tar in tars:
        beside = (tar.root / tar.name).parent
        if not tar.name.lower().endswith(".tar"):
            raise UsageError(
                f"{beside / tar.name}: a compressed tar cannot be read in place; decompress it, or {REMEDY}"
            )
        try:
            Shard(name=tar.name, samples=0, bytes=0, sha256="")
        except ValueError as error:
            raise UsageError(f"{folder}: {error}; rename it") from error
        if not os.access(beside, os.W_OK) or not os.access(tar.root, os.W_OK):
            raise UsageError(
                f"{folder}: indexes and a manifest go beside the tars, but {beside} cannot be written; "
                "make a folder of links to the tars, and name that one"
            )
    return source, tars


def _tars(root: Path, source: Source) -> list[ExternalTar]:
    """Group samples by tar, each tar's in the order of their bytes; each tar is a task."""
    grouped: dict[tuple[str, int], list[Sample]] = {}
    for split, samples in source.splits.items():
        for sample in samples:
            grouped.setdefault((split, sample.container), []).append(sample)
    return [
        ExternalTar(
            root, source.containers[number].path, split, tuple(sorted(samples, key=lambda s: s.offset))
        )
        for (split, number), samples in grouped.items()
    ]


def _classes_by_label(source: Source, tars: list[ExternalTar]) -> tuple[ClassInfo, ...]:
    """Return the classes in the order of the labels in the tars, whatever order their names would have.

    Raises:
        UsageError: Labels leave gaps, or one class has two labels.
    """
    number_of: dict[int, int] = {}
    for tar in tars:
        for sample, span in zip(tar.samples, tar.labels, strict=True):
            if number_of.setdefault(sample.label, span.value) != span.value:
                raise UsageError(
                    f"{source.root}: the class {source.classes[sample.label].id} has the labels "
                    f"{number_of[sample.label]} and {span.value} ({sample.path} in {tar.name}); correct them"
                )
    by_number = {number: source.classes[label] for label, number in number_of.items()}
    missing = sorted(set(range(max(by_number) + 1)) - by_number.keys())
    if missing:
        more = f" or {len(missing) - 1} others" if missing[1:] else ""
        raise UsageError(
            f"{source.root}: labels go up to {max(by_number)}, but no image has {missing[0]}{more}; "
            f"a network needs all from 0 on: {REMEDY}"
        )
    return tuple(by_number[number] for number in range(len(by_number)))


def _report(root: Path, tars: list[ExternalTar], found: list[Measured], max_bad: float) -> None:
    """Write report.csv; raise RunError if more than the share `max_bad` of the images is skipped."""
    report_rows = [
        ReportRow(f"{tar.name}/{tar.samples[number].path}", reason, "skipped")
        for tar, measured in zip(tars, found, strict=True)
        for number, reason in measured.skipped.items()
    ]
    write_bytes(root / REPORT, report_csv(report_rows))
    total = sum(len(tar.samples) for tar in tars)
    if len(report_rows) > max_bad * total:
        first = min(report_rows, key=lambda row: row.path)
        raise RunError(
            f"{len(report_rows)} of {total} images cannot be loaded, more than --max-bad {max_bad:.2%} "
            f"(first: {first.path}: {first.reason}); see {root / REPORT}, then raise --max-bad to leave "
            "them out"
        )


def _without(tar: ExternalTar, skipped: dict[int, str]) -> ExternalTar:
    """Return a tar without the samples of these indexes."""
    kept = [number for number in range(len(tar.samples)) if number not in skipped]
    return tar._replace(
        samples=tuple(tar.samples[number] for number in kept),
        labels=tuple(tar.labels[number] for number in kept),
    )


def _refuse_lost(classes: tuple[ClassInfo, ...], kept: list[ExternalTar]) -> None:
    """Raise RunError if a class has no training images left, or a split no images."""
    trained = {span.value for tar in kept if tar.split == "train" for span in tar.labels}
    lost = [info.id for label, info in enumerate(classes) if label not in trained]
    if lost and any(tar.split == "train" for tar in kept):
        raise RunError(
            f"no decodable training images are left for {', '.join(lost[:5])}; {REPORT} lists those that "
            "were left out: repair the tars"
        )
    empty = {tar.split for tar in kept} - {tar.split for tar in kept if tar.samples}
    if empty:
        raise RunError(f"no decodable images are left in {', '.join(sorted(empty))}; see {REPORT}")


def _index(tar: ExternalTar) -> bytes:
    """Return the DALI index of a tar's images and labels."""
    return to_index(
        [
            (
                ("jpg", Member(f"{sample.key}.jpg", sample.offset, sample.size)),
                ("cls", Member(f"{sample.key}.cls", span.offset, span.size)),
            )
            for sample, span in zip(tar.samples, tar.labels, strict=True)
        ]
    )
