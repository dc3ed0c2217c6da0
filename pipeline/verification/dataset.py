"""Verify a finished dataset: read everything again and report each problem."""

import csv
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.dataset.index import index_name
from pipeline.dataset.manifest import FILE_NAME, MEAN_IMAGE, Manifest, Shard, read_manifest
from pipeline.dataset.report import REPORT
from pipeline.errors import ToolkitError
from pipeline.executors.base import Executor
from pipeline.executors.local import LocalExecutor
from pipeline.images.statistics import Statistics
from pipeline.storage.base import ByteRange, Store
from pipeline.storage.open import open_store
from pipeline.verification.shard import (
    MOST_PROBLEMS,
    Problem,
    ShardReport,
    ShardSpec,
    check_shard,
    key_at,
    limited,
)

# Megapixels of the largest image that the JPEG format allows.
_LARGEST = 65535**2 / 1e6

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


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
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Read a dataset again and check it: checksums, indexes, labels, counts, images, statistics.

    Args:
        root: Folder of the dataset, local or in a bucket.
        fast: Check images' headers but do not decode them.
        executor: Executor of the tasks, one for each shard; None means one worker process on this machine.
        progress: Called with (images done, images in all).

    Raises:
        UsageError: There is no finished dataset, its manifest cannot be read, or the bucket denies access.
        RunError: A worker died, or the bucket cannot be reached.
    """
    store = open_store(root)
    manifest = read_manifest(store)
    if store.local is not None:  # workers may have another current folder
        store = open_store(store.local.absolute())
    shards = _listed(manifest)
    if outside := tuple(_wrong_names(shards)):  # no file that such a manifest lists is opened
        return VerifyReport(len(shards), 0, 0, outside)
    reports = _check_shards(store, manifest, fast, executor or LocalExecutor(), progress)
    strays, notes = _strays(store, manifest)
    problems = (
        *check_manifest(manifest),
        *check_statistics(manifest.statistics),
        *(() if fast and manifest.adopted else _wrong_pixels(manifest, reports)),
        *check_mean_image(store, manifest),
        *check_report(store),
        *(problem for found in reports.values() for problem in found.problems),
        *_untrained(manifest, reports),
        *_duplicates(store, reports),
        *limited(strays, "."),
    )
    samples = sum(found.samples for found in reports.values())
    size = sum(found.size for found in reports.values())
    return VerifyReport(len(shards), samples, size, problems, limited(notes, "."))


def _listed(manifest: Manifest) -> list[Shard]:
    return [shard for shards in manifest.splits.values() for shard in shards]


def _wrong_names(shards: list[Shard]) -> Iterator[Problem]:
    """Yield shards that are listed twice, lead out of the folder, or are not named as tars."""
    seen: set[str] = set()
    for name in (shard.name for shard in shards):
        path = PurePosixPath(name)
        if (
            "\0" in name
            or path.is_absolute()
            or ".." in path.parts
            or path.suffix != ".tar"
            or str(path) != name
        ):
            yield Problem(FILE_NAME, f"lists a shard {name!r}, which is no name of a tar below this folder")
        if name in seen:
            yield Problem(FILE_NAME, f"lists the shard {name} twice")
        seen.add(name)


def _check_shards(
    store: Store, manifest: Manifest, fast: bool, executor: Executor, progress: Progress | None
) -> dict[str, ShardReport]:
    """Check every shard on the executor; return shard name → report, in the manifest's order."""
    shards = _listed(manifest)
    total = sum(shard.samples for shard in shards)

    def on_progress(done: int) -> None:
        if progress:
            progress(min(done, total), total)

    spec = ShardSpec(
        store=store,
        classes=len(manifest.classes),
        label_width=manifest.label_width,
        image=manifest.image,
        adopted=manifest.adopted,
        max_megapixels=_pixel_limit(manifest),
        decode=not fast,
    )
    found: dict[str, ShardReport] = {}
    with closing(executor.run(partial(_check_one, spec=spec), shards, on_progress)) as run:
        for name, report in run:
            found[name] = report
            if not executor.reports_progress:
                on_progress(sum(report.samples for report in found.values()))
    on_progress(total)
    return {shard.name: found[shard.name] for shard in shards}


def _check_one(shard: Shard, spec: ShardSpec) -> tuple[str, ShardReport]:
    return shard.name, check_shard(shard, spec)


def _pixel_limit(manifest: Manifest) -> float:
    """Return the megapixels above which preparation stored no image.

    Only images of their original size need the limit: other images have a fixed size, which is checked.
    """
    if manifest.image.mode == "original":
        limit = manifest.settings.get("max_megapixels", _LARGEST)
        return float(limit) if isinstance(limit, int | float) else _LARGEST
    return _LARGEST


def _training(manifest: Manifest, reports: dict[str, ShardReport]) -> list[ShardReport] | None:
    """Return the training shards' reports, or None if one has problems, so that its counts may be wrong."""
    training = [reports[shard.name] for shard in manifest.splits.get("train", ())]
    return None if any(report.problems for report in training) else training


def _wrong_pixels(manifest: Manifest, reports: dict[str, ShardReport]) -> Iterator[Problem]:
    """Yield a problem if the training images' pixels are not as many as the statistics say."""
    training = _training(manifest, reports)
    if training is None or manifest.image.mode == "original":  # such images are scaled before measuring
        return
    found = sum(report.pixels for report in training)
    if found != manifest.statistics.pixels:
        yield Problem(
            FILE_NAME,
            f"statistics: of {manifest.statistics.pixels:,} pixels, but the training images have {found:,}",
        )


def _untrained(manifest: Manifest, reports: dict[str, ShardReport]) -> Iterator[Problem]:
    """Yield a problem if classes have no training samples."""
    training = _training(manifest, reports)
    if training is None:
        return
    labels = sum((report.labels for report in training), np.zeros(len(manifest.classes), np.int64))
    lost = [info.id for info, count in zip(manifest.classes, labels, strict=True) if not count]
    if lost:
        more = f" and {len(lost) - MOST_PROBLEMS:,} more" if len(lost) > MOST_PROBLEMS else ""
        yield Problem("train", f"no samples of {', '.join(lost[:MOST_PROBLEMS])}{more}")


def _duplicates(store: Store, reports: dict[str, ShardReport]) -> Iterator[Problem]:
    """Yield a problem for each pair of shards that share keys, and for each shard that repeats a key.

    Keys are compared by 8-byte hashes; among 1.5 million keys, two collide with a probability of 1e-7.
    """
    names = list(reports)
    if not names:
        return
    keys = np.concatenate([found.keys for found in reports.values()])
    owners = np.repeat(np.arange(len(names)), [len(found.keys) for found in reports.values()])
    headers = np.concatenate([found.headers for found in reports.values()])
    order = np.argsort(keys, kind="stable")
    twice = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    pairs: dict[tuple[int, int], list[int]] = {}
    for first, second in zip(order[twice], order[twice + 1], strict=True):
        pairs.setdefault((int(owners[first]), int(owners[second])), []).append(int(headers[second]))
    problems = []
    for (one, other), offsets in sorted(pairs.items()):
        key = key_at(store, names[other], min(offsets))
        more = f", and {len(offsets) - 1:,} more keys" if len(offsets) > 1 else ""
        also = "twice in it" if one == other else f"also in {names[one]}"
        problems.append(Problem(names[other], f"key {key} is {also}{more}"))
    yield from limited(problems, ".")


def _strays(store: Store, manifest: Manifest) -> tuple[list[Problem], list[Problem]]:
    """Return files that the manifest does not list: tars and indexes as problems, other files as notes."""
    known = {shard.name for shard in _listed(manifest)}
    known |= {index_name(name) for name in known} | {FILE_NAME, MEAN_IMAGE, REPORT}
    try:
        visible = {file.path for file in store.walk()[0]}
        folders = {"", *(name.rpartition("/")[0] for name in known)}
        hidden = {f"{f}/{n}".lstrip("/") for f in folders for n in store.names(f) if n.startswith(".")}
    except ToolkitError as error:
        return [Problem(".", str(error))], []
    problems, notes = [], []
    for name in sorted((visible | hidden) - known):
        # In an adopted folder, an unlisted tar can be one whose images were all skipped.
        if name.endswith((".tar", ".idx")) and not manifest.adopted:
            problems.append(
                Problem(name, "not in the manifest, but programs that read *.tar would read it; delete it")
            )
        else:
            notes.append(Problem(name, _stray_note(name)))
    return problems, notes


def _stray_note(name: str) -> str:
    last = name.rpartition("/")[2]
    if last == ".work" or last.startswith(".writing-"):
        return "left by a job that was killed; delete it"
    return "not part of this dataset"


_REPORT_COLUMNS = ["path", "reason", "action"]
_MODES = ("square", "aspect", "original")
# Relative tolerance: float64 eigenvectors satisfy the eigenvalue equation to about 1e-15.
_TOLERANCE = 1e-9
# Gray levels: float32 rounds a number between 128 and 256 by at most 2^-17, and so the mean of such numbers.
_MEAN_TOLERANCE = 2.0**-16


def check_manifest(manifest: Manifest) -> Iterator[Problem]:
    """Yield contradictions in a manifest, except in its statistics."""
    classes, width, mode = len(manifest.classes), manifest.label_width, manifest.image.mode
    if mode not in _MODES:
        yield Problem(FILE_NAME, f"image mode {mode!r} is none of {', '.join(_MODES)}")
    if width < len(str(classes - 1)):
        yield Problem(FILE_NAME, f"labels of {width} digits are too short for {classes} classes")
    limit = manifest.settings.get("max_megapixels", 0)
    if not isinstance(limit, int | float):
        yield Problem(FILE_NAME, f"a limit of {limit!r} megapixels is no number")
    ids = [info.id for info in manifest.classes]
    for repeated in sorted({i for i in ids if ids.count(i) > 1}):
        yield Problem(FILE_NAME, f"lists the class {repeated} twice")


def check_statistics(statistics: Statistics) -> Iterator[Problem]:
    """Yield statistics with a wrong shape or range, and eigenvectors that do not fit the covariance."""
    rows = (*statistics.covariance, *statistics.eigenvectors)
    if [len(statistics.covariance), *map(len, rows)] != [3] * 7:
        yield _statistics("covariance and eigenvectors are not 3 x 3 both")
        return
    mean, values = np.array(statistics.mean), np.array(statistics.eigenvalues)
    covariance, vectors = np.array(statistics.covariance), np.array(statistics.eigenvectors)
    scale = np.abs(covariance).max()
    if mean.min() < 0 or mean.max() > 255:
        yield _statistics(f"a mean of {_numbers(mean)} is not within 0..255")
    if not _close(covariance, covariance.T, scale):
        yield _statistics("the covariance is not symmetric")
    if values.min() < 0 or (np.diff(values) > 0).any():
        yield _statistics(f"eigenvalues of {_numbers(values)}: negative, or not the largest first")
    if not _close(vectors @ vectors.T, np.eye(3), 1):
        yield _statistics("the eigenvectors are not orthogonal and of length one")
    elif not _close(vectors @ covariance, values[:, None] * vectors, scale):
        yield _statistics("eigenvalues and eigenvectors are not the covariance's")


def check_mean_image(store: Store, manifest: Manifest) -> Iterator[Problem]:
    """Yield a problem of the mean image of a dataset of squares.

    It must be there, be float32 (size, size, 3), and have the mean of the statistics and the manifest's
    checksum.
    """
    if manifest.image.mode != "square":
        return
    try:
        data = store.read(ByteRange(MEAN_IMAGE))
    except FileNotFoundError:
        yield Problem(MEAN_IMAGE, "missing; a dataset of square images has one")
        return
    except OSError as error:
        yield Problem(MEAN_IMAGE, f"unreadable: {error.strerror or error}")
        return
    try:
        image = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python code and raises any error of that
        yield Problem(MEAN_IMAGE, f"no array: {' '.join(str(error).split())}")
        return
    size = manifest.image.size
    if image.shape != (size, size, 3) or image.dtype != np.float32:
        shape = "x".join(map(str, image.shape))
        yield Problem(MEAN_IMAGE, f"{image.dtype} {shape}; expected float32 {size}x{size}x3")
        return
    mean = image.mean(axis=(0, 1), dtype=np.float64)
    if not np.abs(mean - manifest.statistics.mean).max() <= _MEAN_TOLERANCE:  # "not <=" catches NaN
        expected = _numbers(np.array(manifest.statistics.mean))
        yield Problem(MEAN_IMAGE, f"its mean is {_numbers(mean)}, but the manifest says {expected}")
        return
    checksum = hashlib.sha256(data).hexdigest()
    if manifest.mean_image_sha256 not in (None, checksum):
        yield Problem(
            MEAN_IMAGE, f"its SHA-256 is {checksum}, but the manifest says {manifest.mean_image_sha256}"
        )


def check_report(store: Store) -> Iterator[Problem]:
    """Yield a problem if report.csv is missing or unreadable, or a row has other columns."""
    try:
        text = store.read(ByteRange(REPORT)).decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except FileNotFoundError:
        yield Problem(REPORT, "missing")
        return
    except OSError as error:
        yield Problem(REPORT, f"unreadable: {error.strerror or error}")
        return
    except (ValueError, csv.Error) as error:  # not UTF-8, empty, or not CSV
        yield Problem(REPORT, f"not a report: {error}")
        return
    if header != _REPORT_COLUMNS:
        yield Problem(REPORT, f"its columns are {', '.join(header)}; expected {', '.join(_REPORT_COLUMNS)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(_REPORT_COLUMNS):
            yield Problem(REPORT, f"row {number} has {len(row)} columns instead of {len(_REPORT_COLUMNS)}")
            return


def _statistics(what: str) -> Problem:
    return Problem(FILE_NAME, f"statistics: {what}")


def _close(found: np.ndarray, expected: np.ndarray, scale: float) -> bool:
    return bool(np.abs(found - expected).max() <= _TOLERANCE * scale)


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.7g}" for value in values)
