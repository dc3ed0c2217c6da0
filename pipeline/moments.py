"""Exact integer moments of pixels: sums that merge to the same bits in any order.

count, ΣRGB, ΣRGBᵀRGB and, for square datasets, Σimage, all as int64. Every worker count, engine and
order of shards gives identical statistics, because integer addition is associative.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

# float32 holds integers exactly up to 2^24, and 256 · 255² < 2^24: sums of products over 256 pixels
# are exact in float32, which NumPy multiplies about ten times faster than integers.
_BLOCK = 256


def _zeros3() -> Int64:
    return np.zeros(3, np.int64)


def _zeros3x3() -> Int64:
    return np.zeros((3, 3), np.int64)


@dataclass
class Moments:
    """Running sums over pixels in 0..255.

    Attributes:
        images: pictures added.
        count: pixels added.
        sums: int64 (3,), Σ of R, G and B.
        products: int64 (3, 3), Σ of the outer products of each pixel with itself.
        image_sum: int64 (H, W, 3), Σ of the pictures, or None where their sizes differ.
    """

    images: int = 0
    count: int = 0
    sums: Int64 = field(default_factory=_zeros3)
    products: Int64 = field(default_factory=_zeros3x3)
    image_sum: Int64 | None = None

    @classmethod
    def for_square(cls, size: int) -> "Moments":
        """Moments that also keep the sum image, for pictures of (size, size, 3)."""
        return cls(image_sum=np.zeros((size, size, 3), np.int64))

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Add one picture, uint8 (H, W, 3)."""
        channels = np.ascontiguousarray(pixels.reshape(-1, 3).T)  # (3, N)
        self.images += 1
        self.count += channels.shape[1]
        self.sums += channels.sum(axis=1, dtype=np.int64)
        self.products += _products(channels)
        if self.image_sum is not None:
            self.image_sum += pixels

    def merge(self, other: "Moments") -> None:
        """Add another worker's sums."""
        self.images += other.images
        self.count += other.count
        self.sums += other.sums
        self.products += other.products
        if self.image_sum is not None and other.image_sum is not None:
            self.image_sum += other.image_sum


def _products(channels: NDArray[np.uint8]) -> Int64:
    """Σ of c_i · c_j over the pixels of uint8 (3, N), exactly."""
    pixels = channels.shape[1]
    padded = -(-pixels // _BLOCK) * _BLOCK
    blocks = np.zeros((3, padded), np.float32)
    blocks[:, :pixels] = channels
    blocks = blocks.reshape(3, -1, _BLOCK)
    out = np.empty((3, 3), np.int64)
    for i in range(3):
        for j in range(i, 3):
            per_block = np.einsum("bp,bp->b", blocks[i], blocks[j])
            out[i, j] = out[j, i] = per_block.astype(np.int64).sum()
    return out
