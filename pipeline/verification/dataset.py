"""Verify a finished dataset: read everything again and report each problem."""

import csv
import hashlib
import io
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.dataset.index import index_name
from pipeline.dataset.manifest import FILE_NAME, MEAN_IMAGE, Manifest, Shard, read_manifest
from pipeline.dataset.report import COLUMNS, REPORT
from pipeline.dataset.work import WORK
from pipeline.errors import ToolkitError
from pipeline.executors.base import Executor
from pipeline.progress import OnProgress, no_progress
from pipeline.storage.atomic import PARTIAL
from pipeline.storage.base import ByteRange, Store
from pipeline.storage.open import open_store
from pipeline.verification.shard import (
    MOST_PROBLEMS,
    Problem,
    ShardReport,
    check_shard,
    key_at,
    limited,
    reading,
)
from pipeline.verification.tasks import ONE_BY_ONE, run_tasks

# Relative tolerance: float64 eigenvectors satisfy the eigenvalue equation to about 1e-15.
_TOLERANCE = 1e-9
# Gray levels: float32 rounds a number between 128 and 256 by at most 2^-17, and so the mean of such numbers.
_MEAN_TOLERANCE = 2.0**-16


@dataclass(frozen=True)
class VerifyReport:
    """Result of `verify`.

    Attributes:
        shards: Number of shards in the manifest.
        samples: Number of samples found in the tars.
        bytes: Size of all tars found, in bytes.
        problems: Problems of the dataset; if there is none, it is as it was written.
        notes: Files that do not belong to the dataset but do no harm.
    """

    shards: int
    samples: int
    bytes: int
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...] = ()


def verify(
    root: str | Path,
    *,
    fast: bool = False,
    executor: Executor = ONE_BY_ONE,
    on_progress: OnProgress = no_progress,
) -> VerifyReport:
    """Read a dataset again and check it: checksums, indexes, labels, counts, images, statistics.

    Args:
        root: Folder of the dataset, local or in a bucket.
        fast: Check images' headers but do not decode them.
        executor: Executor of the tasks, one for each shard; by default one worker process on this machine.
        on_progress: Called with (images done, images in all).

    Raises:
        UsageError: There is no finished dataset, its manifest cannot be read, or the bucket denies access.
        RunError: A worker died, or the bucket cannot be reached.
    """
    store = open_store(root)
    manifest = read_manifest(store)
    if store.local is not None:  # workers may have another current folder
        store = open_store(store.local.absolute())
    shards = manifest.shards
    if repeated := _problems(FILE_NAME, _repeated_names(shards)):
        return VerifyReport(len(shards), 0, 0, tuple(repeated))
    # Without the list of shards, which every task would carry.
    work = partial(check_shard, store=store, manifest=replace(manifest, splits={}), decode=not fast)
    reports = run_tasks(executor, work, shards, [shard.samples for shard in shards], on_progress)
    by_name = {shard.name: report for shard, report in zip(shards, reports, strict=True)}
    strays, notes = _strays(store, manifest)
    problems = (
        *_problems(FILE_NAME, chain(_contradictions(manifest), _wrong_statistics(manifest))),
        *_problems(MEAN_IMAGE, _wrong_mean_image(store, manifest)),
        *_problems(REPORT, _wrong_report(store)),
        *(problem for report in reports for problem in report.problems),
        *_wrong_training(manifest, by_name, counted=not (fast and manifest.adopted)),
        *_duplicates(store, by_name),
        *limited(strays, "."),
    )
    return VerifyReport(
        shards=len(shards),
        samples=sum(report.samples for report in reports),
        bytes=sum(report.size for report in reports),
        problems=problems,
        notes=limited(notes, "."),
    )


def _problems(name: str, found: Iterable[str]) -> list[Problem]:
    """Return the problems that a check of the file `name` finds; that it cannot be read is one."""
    problems: list[Problem] = []
    with reading(name, problems):
        problems.extend(Problem(name, what) for what in found)
    return problems


def _repeated_names(shards: list[Shard]) -> Iterator[str]:
    for name, count in Counter(shard.name for shard in shards).items():
        if count > 1:
            yield f"lists the shard {name} twice"


def _wrong_training(manifest: Manifest, reports: dict[str, ShardReport], counted: bool) -> Iterator[Problem]:
    """Yield a problem if classes have no training samples, or if the statistics are not of all their pixels.

    Args:
        manifest: The dataset's manifest.
        reports: Shard name → its report.
        counted: Whether the reports have the pixels of all images.
    """
    statistics = manifest.statistics
    if statistics is None or "train" not in manifest.splits:
        return
    training = [reports[shard.name] for shard in manifest.splits["train"]]
    if any(report.problems for report in training):  # its counts may be wrong
        return
    pixels, found = statistics.pixels, sum(report.pixels for report in training)
    # Images of their original size are scaled before measuring.
    if counted and manifest.image.mode != "original" and found != pixels:
        what = f"statistics: of {pixels:,} pixels, but the training images have {found:,}"
        yield Problem(FILE_NAME, what)
    labels = set[int]().union(*(report.labels for report in training))
    lost = [info.id for label, info in enumerate(manifest.classes) if label not in labels]
    if lost:
        more = f" and {len(lost) - MOST_PROBLEMS:,} more" if len(lost) > MOST_PROBLEMS else ""
        yield Problem("train", f"no samples of {', '.join(lost[:MOST_PROBLEMS])}{more}")


def _duplicates(store: Store, reports: dict[str, ShardReport]) -> tuple[Problem, ...]:
    """Return a problem for each pair of shards that share keys, and for each shard that repeats a key.

    Keys are compared by 8-byte hashes; among 1.5 million keys, two collide with a probability of 1e-7.
    """
    names = list(reports)
    keys, headers, owners = array("Q"), array("q"), array("q")
    for number, report in enumerate(reports.values()):
        keys += report.keys
        headers += report.headers
        owners += array("q", [number]) * len(report.keys)
    ordered = np.argsort(np.asarray(keys), kind="stable")
    twice = np.flatnonzero(np.diff(np.asarray(keys)[ordered]) == 0)
    pairs: dict[tuple[int, int], list[int]] = {}
    for first, second in zip(ordered[twice], ordered[twice + 1], strict=True):
        pairs.setdefault((owners[first], owners[second]), []).append(headers[second])
    problems = []
    for (one, other), offsets in sorted(pairs.items()):
        key = key_at(store, names[other], min(offsets))
        more = f", and {len(offsets) - 1:,} more keys" if len(offsets) > 1 else ""
        also = "twice in it" if one == other else f"also in {names[one]}"
        problems.append(Problem(names[other], f"key {key} is {also}{more}"))
    return limited(problems, ".")


def _strays(store: Store, manifest: Manifest) -> tuple[list[Problem], list[Problem]]:
    """Return files that the manifest does not list: tars and indexes as problems, other files as notes."""
    known = {shard.name for shard in manifest.shards}
    known |= {index_name(name) for name in known} | {FILE_NAME, REPORT}
    if _has_mean_image(manifest):
        known.add(MEAN_IMAGE)
    try:
        visible = {file.path for file in store.walk()[0]}
        folders = {"", *(name.rpartition("/")[0] for name in known)}
        hidden = {f"{f}/{n}".lstrip("/") for f in folders for n in store.names(f) if n.startswith(".")}
    except ToolkitError as error:
        return [Problem(".", str(error))], []
    problems, notes = [], []
    for name in sorted((visible | hidden) - known):
        last = name.rpartition("/")[2]
        # In an adopted folder, an unlisted tar can be one whose images were all skipped.
        if name.endswith((".tar", ".idx")) and not manifest.adopted:
            what = "not in the manifest, but programs that read *.tar would read it; delete it"
            problems.append(Problem(name, what))
        elif last == WORK or last.startswith(PARTIAL):
            notes.append(Problem(name, "left by a job that was killed; delete it"))
        else:
            notes.append(Problem(name, "not part of this dataset"))
    return problems, notes


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield contradictions in a manifest, except in its statistics."""
    classes, width = len(manifest.classes), manifest.label_width
    if width < len(str(classes - 1)):
        yield f"labels of {width} digits are too short for {classes} classes"
    limit = manifest.settings.get("max_megapixels", 0)
    if not isinstance(limit, int | float):
        yield f"a limit of {limit!r} megapixels is no number"
    ids = Counter(info.id for info in manifest.classes)
    for repeated in sorted(name for name, count in ids.items() if count > 1):
        yield f"lists the class {repeated} twice"


def _wrong_statistics(manifest: Manifest) -> Iterator[str]:
    """Yield statistics with a wrong shape or range, and eigenvectors that do not fit the covariance."""
    statistics = manifest.statistics
    if (statistics is None) == ("train" in manifest.splits):
        there = "null, but there is a training split" if statistics is None else "without a training split"
        yield f"statistics: {there}"
    if statistics is None:
        return
    rows = (*statistics.covariance, *statistics.eigenvectors)
    if [len(statistics.covariance), *map(len, rows)] != [3] * 7:
        yield "statistics: covariance and eigenvectors are not 3 x 3 both"
        return
    mean, values = np.array(statistics.mean), np.array(statistics.eigenvalues)
    covariance, vectors = np.array(statistics.covariance), np.array(statistics.eigenvectors)
    scale = np.abs(covariance).max()
    if mean.min() < 0 or mean.max() > 255:
        yield f"statistics: a mean of {_numbers(mean)} is not within 0..255"
    if not _close(covariance, covariance.T, scale):
        yield "statistics: the covariance is not symmetric"
    if values.min() < 0 or (np.diff(values) > 0).any():
        yield f"statistics: eigenvalues of {_numbers(values)}: negative, or not the largest first"
    if not _close(vectors @ vectors.T, np.eye(3), 1):
        yield "statistics: the eigenvectors are not orthogonal and of length one"
    elif not _close(vectors @ covariance, values[:, None] * vectors, scale):
        yield "statistics: eigenvalues and eigenvectors are not the covariance's"


def _has_mean_image(manifest: Manifest) -> bool:
    return manifest.image.mode == "square" and "train" in manifest.splits


def _wrong_mean_image(store: Store, manifest: Manifest) -> Iterator[str]:
    """Yield a problem of the mean image of a dataset with square training images.

    It must be there, be float32 (size, size, 3), and have the mean of the statistics and the manifest's
    checksum.
    """
    statistics = manifest.statistics
    if statistics is None or not _has_mean_image(manifest):
        return
    try:
        data = store.read(ByteRange(MEAN_IMAGE))
    except FileNotFoundError:
        yield "missing; a dataset of square training images has one"
        return
    try:
        image = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python code and raises any error of that
        yield f"no array: {' '.join(str(error).split())}"
        return
    size, expected = manifest.image.size, np.array(statistics.mean)
    if image.shape != (size, size, 3) or image.dtype != np.float32:
        yield f"{image.dtype} {'x'.join(map(str, image.shape))}; expected float32 {size}x{size}x3"
        return
    mean, checksum = image.mean(axis=(0, 1), dtype=np.float64), hashlib.sha256(data).hexdigest()
    if not np.abs(mean - expected).max() <= _MEAN_TOLERANCE:  # "not <=" catches NaN
        yield f"its mean is {_numbers(mean)}, but the manifest says {_numbers(expected)}"
    elif manifest.mean_image_sha256 not in (None, checksum):
        yield f"its SHA-256 is {checksum}, but the manifest says {manifest.mean_image_sha256}"


def _wrong_report(store: Store) -> Iterator[str]:
    """Yield a problem if report.csv is unreadable, or a row has other columns."""
    data = store.read(ByteRange(REPORT))
    try:
        header, *rows = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
    except (ValueError, csv.Error) as error:  # not UTF-8, empty, or not CSV
        yield f"not a report: {error}"
        return
    if header != COLUMNS:
        yield f"its columns are {', '.join(header)}; expected {', '.join(COLUMNS)}"
    for number, row in enumerate(rows, 2):
        if len(row) != len(COLUMNS):
            yield f"row {number} has {len(row)} columns instead of {len(COLUMNS)}"
            return


def _close(found: np.ndarray, expected: np.ndarray, scale: float) -> bool:
    return bool(np.abs(found - expected).max() <= _TOLERANCE * scale)


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.7g}" for value in values)
