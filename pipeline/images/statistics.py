"""RGB statistics of pixels: exact sums, mean, covariance, principal directions, and the mean image."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.library_settings import opencv

Int64 = NDArray[np.int64]

# Most images whose sum a float32 holds exactly: it represents all integers up to 2^24.
_MOST_IMAGES = 2**24 // 255


class Moments:
    """Exact integer sums over pixels in 0..255, which can be merged in any order.

    Attributes:
        images: number of images added.
        count: number of pixels added.
        sums: int64 (3,), sums of R, G and B.
        products: int64 (3, 3), sum of each pixel's outer product with itself.
    """

    def __init__(
        self,
        images: int = 0,
        count: int = 0,
        sums: Int64 | None = None,
        products: Int64 | None = None,
        image_sum: Int64 | None = None,
    ) -> None:
        self.images = images
        self.count = count
        self.sums = np.zeros(3, np.int64) if sums is None else sums
        self.products = np.zeros((3, 3), np.int64) if products is None else products
        self._image_sum = image_sum
        # float32 is half the size of the int64 sum, so it stays in the CPU's cache between images.
        self._recent = None if image_sum is None else np.zeros(image_sum.shape, np.float32)
        self._recent_images = 0

    @classmethod
    def for_square(cls, size: int) -> "Moments":
        """Return empty moments that also sum whole images of (size, size, 3), for the mean image."""
        return cls(image_sum=np.zeros((size, size, 3), np.int64))

    @property
    def image_sum(self) -> Int64 | None:
        """Sum of the images, int64 (H, W, 3), or None if it is not kept, as for images of different sizes."""
        if self._image_sum is not None and self._recent is not None and self._recent_images:
            self._image_sum += self._recent.astype(np.int64)
            self._recent[:] = 0
            self._recent_images = 0
        return self._image_sum

    @opencv
    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Add one image, uint8 (H, W, 3).

        Raises:
            ValueError: the image's shape differs from the sum image's.
        """
        if self._recent is not None:
            if pixels.shape != self._recent.shape:
                raise ValueError(
                    f"an image has shape {pixels.shape}, but the others have {self._recent.shape}"
                )
            cv2.accumulate(pixels, self._recent)
            self._recent_images += 1
            if self._recent_images == _MOST_IMAGES:
                _ = self.image_sum
        self.images += 1
        self.count += pixels.shape[0] * pixels.shape[1]
        self.sums += np.array(cv2.sumElems(pixels)[:3], np.int64)  # exact: OpenCV sums bytes in integers
        self.products += _products(pixels)

    def merge(self, other: "Moments") -> None:
        """Add the sums of other moments, such as another worker's."""
        self.images += other.images
        self.count += other.count
        self.sums += other.sums
        self.products += other.products
        mine, theirs = self.image_sum, other.image_sum
        if mine is not None and theirs is not None:
            mine += theirs


def _products(pixels: NDArray[np.uint8]) -> Int64:
    """Return the exact sums of c_i · c_j over the pixels, int64 (3, 3).

    Computed as Σab = (Σa² + Σb² − Σ(a − b)²) / 2, because OpenCV sums squares of bytes in integers, three
    times as fast as NumPy computes the products.
    """
    channels = cv2.split(pixels)
    squares = [cv2.norm(channel, cv2.NORM_L2SQR) for channel in channels]
    out = np.diag(np.array(squares, np.int64))
    for i in range(3):
        for j in range(i + 1, 3):
            difference = cv2.norm(channels[i], channels[j], cv2.NORM_L2SQR)
            out[i, j] = out[j, i] = int(squares[i] + squares[j] - difference) // 2
    return out


@dataclass(frozen=True)
class Statistics:
    """RGB statistics of the training pixels, in units of 0..255.

    Attributes:
        pixels: number of pixels.
        mean: (3,) mean of R, G, B.
        covariance: (3, 3) population covariance, squared gray levels.
        eigenvalues: (3,) eigenvalues of the covariance, largest first.
        eigenvectors: (3, 3); row i is the unit vector (R, G, B) of eigenvalue i, signed so that its component
            of largest magnitude is positive.
        measured_on: "source" for pixels before JPEG encoding, "decoded" for pixels decoded from the shards.
    """

    pixels: int
    mean: tuple[float, float, float]
    covariance: tuple[tuple[float, ...], ...]
    eigenvalues: tuple[float, float, float]
    eigenvectors: tuple[tuple[float, ...], ...]
    measured_on: str

    @property
    def deviations(self) -> NDArray[np.float64]:
        """Standard deviation along each eigenvector in gray levels, float64 (3,)."""
        return np.sqrt(np.asarray(self.eigenvalues, np.float64))


def statistics_of(moments: Moments, measured_on: str = "source") -> Statistics:
    """Compute statistics from exact sums; equal sums give equal bits.

    Each mean and covariance is one correctly rounded division of exact integers.

    Args:
        moments: sums over the pixels.
        measured_on: "source" or "decoded"; see `Statistics`.

    Raises:
        ValueError: no pixel was added.
    """
    n = moments.count
    if n == 0:
        raise ValueError("no statistics: no pixel was added")
    sums = [int(s) for s in moments.sums]
    products = [[int(p) for p in row] for row in moments.products]
    covariance = [[(n * products[i][j] - sums[i] * sums[j]) / (n * n) for j in range(3)] for i in range(3)]
    values, vectors = np.linalg.eigh(np.array(covariance))
    rows = vectors.T[::-1]
    rows = rows * np.sign(rows[np.arange(3), np.abs(rows).argmax(axis=1)])[:, None]
    clipped = np.maximum(values[::-1], 0.0)  # rounding can give -1e-13 for gray images
    return Statistics(
        pixels=n,
        mean=(sums[0] / n, sums[1] / n, sums[2] / n),
        covariance=tuple(tuple(row) for row in covariance),
        eigenvalues=(float(clipped[0]), float(clipped[1]), float(clipped[2])),
        eigenvectors=tuple(tuple(float(x) for x in row) for row in rows),
        measured_on=measured_on,
    )


def mean_image_of(moments: Moments) -> NDArray[np.float32]:
    """Return the mean image, float32 (H, W, 3), 0..255.

    Raises:
        ValueError: the moments have no sum image, or no image was added.
    """
    if moments.image_sum is None or moments.images == 0:
        raise ValueError("no mean image: the images differ in size, or none was added")
    return (moments.image_sum / moments.images).astype(np.float32)
