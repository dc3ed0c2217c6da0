"""Proving a finished dataset: everything is read again, and each fault named."""

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

# Megapixels of the largest JPEG that there can be.
_LARGEST = 65535**2 / 1e6

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        shards: that the manifest lists.
        samples: found in them.
        bytes: of the tars found.
        faults: what is wrong; with none, the dataset is what was written.
        notes: what does not belong there but harms nobody.
    """

    shards: int
    samples: int
    bytes: int
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...] = ()


def verify(
    root: str | Path, *, fast: bool = False, engine: Executor | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Read a dataset again: checksums, indexes against tars, labels, counts, images, statistics.

    Args:
        root: the dataset's folder, here or in a bucket.
        fast: leave out decoding; images' headers are looked at nevertheless.
        engine: where shards are checked, each a task; one process on this machine where none is given.
        progress: told (images checked, images in all).

    Raises:
        UsageError: no finished dataset there, a manifest that cannot be read, or a bucket that refuses.
        RunError: a worker died, or the bucket cannot be reached.
    """
    store = open_store(root)
    manifest = read_manifest(store)
    if store.local is not None:  # workers elsewhere have another current folder
        store = open_store(store.local.absolute())
    shards = _listed(manifest)
    if outside := tuple(_wrong_names(shards)):  # nothing that such a manifest names is looked at
        return VerifyReport(len(shards), 0, 0, outside)
    reports = _check_shards(store, manifest, fast, engine or LocalExecutor(), progress)
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
    """Shards listed twice, or under names that lead out of the folder or are no tar's."""
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
    store: Store, manifest: Manifest, fast: bool, engine: Executor, progress: Progress | None
) -> dict[str, ShardReport]:
    """Check every shard on the engine; shard name → findings, in the manifest's order."""
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
    with closing(engine.run(partial(_check_one, spec=spec), shards, on_progress)) as run:
        for name, reports in run:
            found[name] = reports
            if not engine.reports_progress:
                on_progress(sum(shard.samples for shard in found.values()))
    on_progress(total)
    return {shard.name: found[shard.name] for shard in shards}


def _check_one(shard: Shard, spec: ShardSpec) -> tuple[str, ShardReport]:
    return shard.name, check_shard(shard, spec)


def _pixel_limit(manifest: Manifest) -> float:
    """Megapixels beyond which an image was never stored; where sizes are fixed, headers tell as much."""
    if manifest.image.mode == "original":
        limit = manifest.settings.get("max_megapixels", _LARGEST)
        return float(limit) if isinstance(limit, int | float) else _LARGEST
    return _LARGEST


def _training(manifest: Manifest, reports: dict[str, ShardReport]) -> list[ShardReport] | None:
    """The training shards' findings, or None where a damaged one leaves their sums unknown."""
    found = [reports[shard.name] for shard in manifest.splits.get("train", ())]
    return None if any(shard.problems for shard in found) else found


def _wrong_pixels(manifest: Manifest, reports: dict[str, ShardReport]) -> Iterator[Problem]:
    training = _training(manifest, reports)
    if training is None or manifest.image.mode == "original":  # such are scaled before they are measured
        return
    found = sum(shard.pixels for shard in training)
    if found != manifest.statistics.pixels:
        yield Problem(
            FILE_NAME,
            f"statistics: of {manifest.statistics.pixels:,} pixels, but the training images have {found:,}",
        )


def _untrained(manifest: Manifest, reports: dict[str, ShardReport]) -> Iterator[Problem]:
    training = _training(manifest, reports)
    if training is None:
        return
    labels = sum((shard.labels for shard in training), np.zeros(len(manifest.classes), np.int64))
    lost = [info.id for info, count in zip(manifest.classes, labels, strict=True) if not count]
    if lost:
        more = f" and {len(lost) - MOST_PROBLEMS:,} more" if len(lost) > MOST_PROBLEMS else ""
        yield Problem("train", f"no samples of {', '.join(lost[:MOST_PROBLEMS])}{more}")


def _duplicates(store: Store, reports: dict[str, ShardReport]) -> Iterator[Problem]:
    """Keys that occur twice, told once for each pair of shards.

    Eight bytes of a hash stand for a key: a million and a half of them collide with a chance of 1e-7.
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
    """Files that the manifest does not know: those that a reader of tars might take, and harmless ones."""
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
        # A folder of other tools' tars may hold some of which no image was usable.
        if name.endswith((".tar", ".idx")) and not manifest.adopted:
            problems.append(
                Problem(name, "not in the manifest, but programs that read *.tar would; delete it")
            )
        else:
            notes.append(Problem(name, _left(name)))
    return problems, notes


def _left(name: str) -> str:
    last = name.rpartition("/")[2]
    if last == ".work" or last.startswith(".writing-"):
        return "left by a job that was killed; delete it"
    return "not of this dataset"


_REPORT_COLUMNS = ["path", "reason", "action"]
_MODES = ("square", "aspect", "original")
# Stored in full as float64, a covariance's eigenvectors satisfy its equation to some 1e-15.
_TOLERANCE = 1e-9
# A float32 between 128 and 256 is at most 2^-17 from the number that it rounds, and so is a mean of such.
_MEAN_TOLERANCE = 2.0**-16


def check_manifest(manifest: Manifest) -> Iterator[Problem]:
    """What the manifest says that cannot be, apart from its statistics."""
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
    """Whether shapes and ranges are right, and eigenvalues and eigenvectors the covariance's."""
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
    """Whether a dataset of squares has its mean image, of the right form and the statistics' mean."""
    if manifest.image.mode != "square":
        return
    try:
        data = store.read(ByteRange(MEAN_IMAGE))
    except FileNotFoundError:
        yield Problem(MEAN_IMAGE, "missing; a dataset of squares has one")
        return
    except OSError as error:
        yield Problem(MEAN_IMAGE, f"unreadable: {error.strerror or error}")
        return
    try:
        image = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy reads the header as Python, and raises whatever that does
        yield Problem(MEAN_IMAGE, f"no array: {' '.join(str(error).split())}")
        return
    size = manifest.image.size
    if image.shape != (size, size, 3) or image.dtype != np.float32:
        shape = "x".join(map(str, image.shape))
        yield Problem(MEAN_IMAGE, f"{image.dtype} {shape}; expected float32 {size}x{size}x3")
        return
    mean = image.mean(axis=(0, 1), dtype=np.float64)
    if not np.abs(mean - manifest.statistics.mean).max() <= _MEAN_TOLERANCE:  # NaN is not
        expected = _numbers(np.array(manifest.statistics.mean))
        yield Problem(MEAN_IMAGE, f"its mean is {_numbers(mean)}, but the manifest says {expected}")
        return
    checksum = hashlib.sha256(data).hexdigest()
    if manifest.mean_image_sha256 not in (None, checksum):
        yield Problem(
            MEAN_IMAGE, f"its SHA-256 is {checksum}, but the manifest says {manifest.mean_image_sha256}"
        )


def check_report(store: Store) -> Iterator[Problem]:
    """Whether the report is there and every row has its columns."""
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
