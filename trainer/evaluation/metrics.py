"""Metrics of a classifier: top-1 and top-5 with confidence intervals, loss, confusion, calibration error.

Shapes: B batch, K classes, M bins of the calibration error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.distributed.env import all_sum
from trainer.evaluation.probabilities import Top

BINS = 15
"""Number of equal-width bins of the calibration error (Guo et al. 2017, "On Calibration of Modern Neural
Networks")."""
_Z95 = NormalDist().inv_cdf(0.975)

# Sums of floats would depend on the order of their terms. An int64 holds 3 million losses of −log 1e-300.
_UNITS = 2**32

Interval = tuple[float, float]
"""Lower and upper bound of a share, 0..1."""


@dataclass(frozen=True)
class Metrics:
    """Metrics over a split.

    Attributes:
        samples: Number of images evaluated.
        top1, top5: Share of images, 0..1, whose label is the most probable class, or among the five most
            probable; ties go to the lower class number.
        top1_interval, top5_interval: Wilson 95 % intervals of top1 and top5, 0..1.
        loss: Mean of −log of the label's probability, nats.
        ece: Expected calibration error, 0..1; see `calibration_error`.
        largest_class: Share of images, 0..1, with the most frequent label: the top-1 of always predicting it.
    """

    samples: int
    top1: float
    top5: float
    top1_interval: Interval
    top5_interval: Interval
    loss: float
    ece: float
    largest_class: float


def wilson(successes: int, total: int) -> Interval:
    """Return the Wilson 95 % score interval of `successes` in `total` independent trials, 0..1.

    Unlike the textbook's p ± 1.96 √(p(1 − p) / n), it stays within 0..1, and covers 95 % near 0 and 1 too
    (Wilson 1927; Brown, Cai and DasGupta 2001).

    Raises:
        ValueError: `total` is below 1.
    """
    if total < 1:
        raise ValueError("an interval needs at least one trial")
    share, z2 = successes / total, _Z95**2
    center = share + z2 / (2 * total)
    half = _Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    scale = 1 + z2 / total
    low, high = (center - half) / scale, (center + half) / scale
    # With no or only successes, one bound is exactly 0 or 1; rounding would miss it.
    return (0.0 if successes == 0 else low), (1.0 if successes == total else high)


def calibration_error(counts: Tensor, correct: Tensor, confidence: Tensor) -> float:
    """Return the expected calibration error, 0..1: |accuracy − mean confidence|, averaged over images by bin.

    Args:
        counts: int64 (M,), number of images whose largest probability falls into each bin.
        correct: int64 (M,), number of these images that are predicted right.
        confidence: float64 (M,), sum of the largest probabilities of these images.
    """
    gaps = (correct.double() - confidence).abs()
    return float(gaps.sum() / counts.sum())


class Tally:
    """Running sums from which all metrics are computed.

    All are integers, so that the order of batches and the number of processes do not matter.

    Attributes:
        confusion: int64 (K, K), number of images by label (row) and predicted class (column).
        top5_hits: int64 (K,), number of images of each label that have it among the five most probable.
        loss: int64 scalar, sum of −log of the label's probability, in 2⁻³² nats.
        invalid: int64 scalar, number of images whose label has no finite probability.
        bins: int64 (2, M), number of images in each bin of confidence, and how many of them are right.
        confidence: int64 (M,), sum of the largest probabilities in each bin, in 2⁻³².
        left_out: int64 scalar, number of images that do not count because of their label.
    """

    def __init__(
        self, classes: int, device: torch.device | None = None, counted: Sequence[int] | None = None
    ) -> None:
        """Start with zero sums for `classes` classes.

        Args:
            classes: Number of classes, K.
            device: Device of the sums; default: the CPU.
            counted: Labels of the images that count; None for all.
        """
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        self.top5_hits = torch.zeros(classes, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.int64, device=device)
        self.invalid = torch.zeros_like(self.loss)
        self.bins = torch.zeros(2, BINS, dtype=torch.int64, device=device)
        self.confidence = torch.zeros(BINS, dtype=torch.int64, device=device)
        self.left_out = torch.zeros((), dtype=torch.int64, device=device)
        self._counted = None
        if counted is not None:
            self._counted = torch.zeros(classes, dtype=torch.bool, device=device)
            self._counted[list(counted)] = True
        self._edges = torch.arange(1, BINS, dtype=torch.float64, device=device) / BINS

    def add(self, probabilities: Tensor, labels: Tensor, top: Top) -> None:
        """Add a batch; where all labels count, without synchronizing with the GPU.

        Args:
            probabilities: float64 (B, K), each row sums to 1.
            labels: int64 (B,), 0..K-1.
            top: The five most probable classes of each row.
        """
        if self._counted is not None:
            kept = self._counted[labels]
            self.left_out += (~kept).sum()
            probabilities, labels, top = probabilities[kept], labels[kept], Top(*(part[kept] for part in top))
        confidence = top.values.amax(dim=1)
        hits = (top.classes == labels[:, None]).long()
        ones = torch.ones_like(labels)
        cells = labels * len(self.confusion) + top.classes[:, 0]
        self.confusion.view(-1).scatter_add_(0, cells, ones)
        self.top5_hits.scatter_add_(0, labels, hits.sum(dim=1))
        own = probabilities.gather(1, labels[:, None]).clamp_min(1e-300)
        self.loss -= _in_units(own.log()).sum()
        self.invalid += (~own.isfinite()).sum()
        bins = torch.bucketize(confidence, self._edges)  # bin m holds (m / M, (m + 1) / M]
        self.bins[0].scatter_add_(0, bins, ones)
        self.bins[1].scatter_add_(0, bins, hits[:, 0])
        self.confidence.scatter_add_(0, bins, _in_units(confidence))

    def merge(self) -> None:
        """Sum over all processes (all-reduce); every process has the same sums afterwards."""
        for sums in (self.confusion, self.top5_hits, self.bins, self.confidence):
            all_sum(sums)
        for sums in (self.loss, self.invalid, self.left_out):
            all_sum(sums)

    @property
    def samples(self) -> int:
        """Number of images added that count."""
        return int(self.bins[0].sum())

    def per_class(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return int64 (K,) each: the images of each label, and how many are right in top-1 and in top-5."""
        images, hits = self.confusion.sum(dim=1), self.confusion.diagonal()
        return images.cpu().numpy(), hits.cpu().numpy().copy(), self.top5_hits.cpu().numpy()

    def metrics(self) -> Metrics:
        """Compute the metrics from the sums; the loss is NaN if any label's probability was NaN.

        Raises:
            ValueError: no image was added.
        """
        images, top1, top5 = self.per_class()
        samples, right, among = int(images.sum()), int(top1.sum()), int(top5.sum())
        if not samples:
            raise ValueError("nothing was counted")
        return Metrics(
            samples=samples,
            top1=right / samples,
            top5=among / samples,
            top1_interval=wilson(right, samples),
            top5_interval=wilson(among, samples),
            loss=math.nan if self.invalid else int(self.loss) / _UNITS / samples,
            ece=calibration_error(self.bins[0], self.bins[1], self.confidence.double() / _UNITS),
            largest_class=int(images.max()) / samples,
        )


def _in_units(values: Tensor) -> Tensor:
    """Convert float64 values to int64, in 2⁻³²; those that are not finite count as 0."""
    return torch.nan_to_num(values * _UNITS, nan=0.0, posinf=0.0, neginf=0.0).round().long()
