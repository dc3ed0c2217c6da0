"""Proving what a dataset says of itself as a whole: its manifest, statistics, mean image and report."""

import csv
import hashlib
import io
from collections.abc import Iterator

import numpy as np

from pipeline.dataset.manifest import FILE_NAME, MEAN_IMAGE, Manifest
from pipeline.images.statistics import Statistics
from pipeline.sharding.merge import REPORT
from pipeline.storage.base import Span, Store
from pipeline.verification.findings import Fault

_REPORT_COLUMNS = ["path", "reason", "action"]
_MODES = ("square", "aspect", "original")
# Stored in full as float64, a covariance's eigenvectors satisfy its equation to some 1e-15.
_TOLERANCE = 1e-9
# A float32 between 128 and 256 is at most 2^-17 from the number that it rounds, and so is a mean of such.
_MEAN_TOLERANCE = 2.0**-16


def check_manifest(manifest: Manifest) -> Iterator[Fault]:
    """What the manifest says that cannot be, apart from its statistics."""
    classes, width, mode = len(manifest.classes), manifest.label_width, manifest.image.mode
    if mode not in _MODES:
        yield Fault(FILE_NAME, f"image mode {mode!r} is none of {', '.join(_MODES)}")
    if width < len(str(classes - 1)):
        yield Fault(FILE_NAME, f"labels of {width} digits are too short for {classes} classes")
    limit = manifest.settings.get("max_megapixels", 0)
    if not isinstance(limit, int | float):
        yield Fault(FILE_NAME, f"a limit of {limit!r} megapixels is no number")
    ids = [info.id for info in manifest.classes]
    for repeated in sorted({i for i in ids if ids.count(i) > 1}):
        yield Fault(FILE_NAME, f"lists the class {repeated} twice")


def check_statistics(statistics: Statistics) -> Iterator[Fault]:
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


def check_mean_image(store: Store, manifest: Manifest) -> Iterator[Fault]:
    """Whether a dataset of squares has its mean image, of the right form and the statistics' mean."""
    if manifest.image.mode != "square":
        return
    try:
        data = store.read(Span(MEAN_IMAGE))
    except FileNotFoundError:
        yield Fault(MEAN_IMAGE, "missing; a dataset of squares has one")
        return
    except OSError as error:
        yield Fault(MEAN_IMAGE, f"unreadable: {error.strerror or error}")
        return
    try:
        image = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy reads the header as Python, and raises whatever that does
        yield Fault(MEAN_IMAGE, f"no array: {' '.join(str(error).split())}")
        return
    size = manifest.image.size
    if image.shape != (size, size, 3) or image.dtype != np.float32:
        shape = "x".join(map(str, image.shape))
        yield Fault(MEAN_IMAGE, f"{image.dtype} {shape}; expected float32 {size}x{size}x3")
        return
    mean = image.mean(axis=(0, 1), dtype=np.float64)
    if not np.abs(mean - manifest.statistics.mean).max() <= _MEAN_TOLERANCE:  # NaN is not
        expected = _numbers(np.array(manifest.statistics.mean))
        yield Fault(MEAN_IMAGE, f"its mean is {_numbers(mean)}, but the manifest says {expected}")
        return
    checksum = hashlib.sha256(data).hexdigest()
    if manifest.mean_image_sha256 not in (None, checksum):
        yield Fault(
            MEAN_IMAGE, f"its SHA-256 is {checksum}, but the manifest says {manifest.mean_image_sha256}"
        )


def check_report(store: Store) -> Iterator[Fault]:
    """Whether the report is there and every row has its columns."""
    try:
        text = store.read(Span(REPORT)).decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except FileNotFoundError:
        yield Fault(REPORT, "missing")
        return
    except OSError as error:
        yield Fault(REPORT, f"unreadable: {error.strerror or error}")
        return
    except (ValueError, csv.Error) as error:  # not UTF-8, empty, or not CSV
        yield Fault(REPORT, f"not a report: {error}")
        return
    if header != _REPORT_COLUMNS:
        yield Fault(REPORT, f"its columns are {', '.join(header)}; expected {', '.join(_REPORT_COLUMNS)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(_REPORT_COLUMNS):
            yield Fault(REPORT, f"row {number} has {len(row)} columns instead of {len(_REPORT_COLUMNS)}")
            return


def _statistics(what: str) -> Fault:
    return Fault(FILE_NAME, f"statistics: {what}")


def _close(found: np.ndarray, expected: np.ndarray, scale: float) -> bool:
    return bool(np.abs(found - expected).max() <= _TOLERANCE * scale)


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.7g}" for value in values)
