"""RGB statistics of the training pixels: mean, covariance and principal colour directions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.images.moments import Moments


@dataclass(frozen=True)
class Statistics:
    """What the augmentation needs to know about the training pixels, in 0..255 units.

    Attributes:
        pixels: how many pixels were summed.
        mean: (3,) mean of R, G, B.
        covariance: (3, 3) population covariance, squared grey levels.
        eigenvalues: (3,) of the covariance, largest first.
        eigenvectors: (3, 3); row i is the unit direction (R, G, B) of eigenvalue i, signed so that
            its component of largest magnitude is positive.
        measured_on: "source" for pixels before JPEG encoding, "decoded" for those read from shards.
    """

    pixels: int
    mean: tuple[float, float, float]
    covariance: tuple[tuple[float, ...], ...]
    eigenvalues: tuple[float, float, float]
    eigenvectors: tuple[tuple[float, ...], ...]
    measured_on: str

    @property
    def deviations(self) -> NDArray[np.float64]:
        """Standard deviation along each eigenvector, float64 (3,), in grey levels."""
        return np.sqrt(np.asarray(self.eigenvalues, np.float64))


def statistics_of(moments: Moments, measured_on: str = "source") -> Statistics:
    """Turn exact sums into statistics; the same sums give the same bits.

    Means and covariances are single correctly rounded divisions of exact integers.

    Raises:
        ValueError: no pixel was added.
    """
    n = moments.count
    if n == 0:
        raise ValueError("statistics of no pixels")
    sums = [int(s) for s in moments.sums]
    products = [[int(p) for p in row] for row in moments.products]
    covariance = [[(n * products[i][j] - sums[i] * sums[j]) / (n * n) for j in range(3)] for i in range(3)]
    values, vectors = np.linalg.eigh(np.array(covariance))
    rows = vectors.T[::-1]
    rows = rows * np.sign(rows[np.arange(3), np.abs(rows).argmax(axis=1)])[:, None]
    clipped = np.maximum(values[::-1], 0.0)  # rounding can leave -1e-13 for grey-only data
    return Statistics(
        pixels=n,
        mean=(sums[0] / n, sums[1] / n, sums[2] / n),
        covariance=tuple(tuple(row) for row in covariance),
        eigenvalues=(float(clipped[0]), float(clipped[1]), float(clipped[2])),
        eigenvectors=tuple(tuple(float(x) for x in row) for row in rows),
        measured_on=measured_on,
    )


def mean_image_of(moments: Moments) -> NDArray[np.float32]:
    """Mean training picture, float32 (H, W, 3), 0..255.

    Raises:
        ValueError: the moments keep no sum image or hold no picture.
    """
    if moments.image_sum is None or moments.images == 0:
        raise ValueError("no mean image: pictures of different sizes, or none")
    return (moments.image_sum / moments.images).astype(np.float32)
