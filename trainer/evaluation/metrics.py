"""What is measured of a classifier: top-1, top-5, confusion, calibration, and how sure each figure is.

Shapes: B batch, K classes, M bins.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.distributed.env import all_sum

BINS = 15
"""Equal-width bins of the calibration error: Guo et al. 2017, "On Calibration of Modern Neural Networks"."""
_Z95 = NormalDist().inv_cdf(0.975)

Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """Results over a split.

    Attributes:
        samples: images measured.
        top1, top5: shares of images, 0..1, whose label is the likeliest, or among the five
            likeliest; of equal probabilities the lower class number counts as likelier.
        top1_interval, top5_interval: Wilson's 95 % intervals of these shares, 0..1.
        loss: mean −log of the label's probability, nats.
        ece: expected calibration error, 0..1; see `calibration_error`.
        largest_class: share of images, 0..1, of the commonest label: the top-1 of always guessing it.
    """

    samples: int
    top1: float
    top5: float
    top1_interval: Interval
    top5_interval: Interval
    loss: float
    ece: float
    largest_class: float


def label_ranks(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How many classes are likelier than the label, int64 (B,), from (B, K) and (B,).

    Of equal probabilities the lower class number counts as likelier, so that ties have one outcome.
    """
    own = probabilities.gather(1, labels[:, None])
    classes = torch.arange(probabilities.shape[1], device=labels.device)
    ahead = (probabilities > own) | ((probabilities == own) & (classes < labels[:, None]))
    return ahead.sum(dim=1)


def topk_stable(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest probabilities of each row, and their classes, int64: (B, count) each, in order.

    Fewer where there are fewer classes.

    Ties as in `label_ranks`: a label of rank r < count stands in column r. `torch.topk` leaves them open,
    and a stable sort of 1,000 classes takes ten times as long.
    """
    left = probabilities.clone()
    found = []
    for _ in range(min(count, left.shape[1])):
        found.append(left.max(dim=1, keepdim=True))  # the first of equal ones, as torch documents
        left.scatter_(1, found[-1].indices, -math.inf)
    return torch.cat([f.values for f in found], dim=1), torch.cat([f.indices for f in found], dim=1)


def wilson(successes: int, total: int) -> Interval:
    """Wilson's 95 % score interval of a share: successes of total independent trials, 0..1.

    Unlike the textbook's p ± 1.96 √(p(1 − p) / n) it keeps within 0..1 and its promise near the ends
    (Wilson 1927; Brown, Cai and DasGupta 2001).

    Raises:
        ValueError: no trials.
    """
    if total < 1:
        raise ValueError("an interval needs at least one trial")
    share, z2 = successes / total, _Z95**2
    center = share + z2 / (2 * total)
    half = _Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    scale = 1 + z2 / total
    low, high = (center - half) / scale, (center + half) / scale
    # At the ends one bound is the share itself, but for rounding.
    return (0.0 if successes == 0 else low), (1.0 if successes == total else high)


def calibration_error(counts: Tensor, correct: Tensor, confidence: Tensor) -> float:
    """Expected calibration error: Σ over bins of |accuracy − mean confidence|, weighted by images.

    Args:
        counts: int64 (M,), images whose largest probability falls into each bin.
        correct: int64 (M,), those of them that are right.
        confidence: float64 (M,), the sum of their largest probabilities.
    """
    gaps = (correct.double() - confidence).abs()
    return float(gaps.sum() / counts.sum())


class Tally:
    """Sums over batches that all metrics follow from; counts are integers, so their order is no matter.

    Attributes:
        confusion: int64 (K, K), images by label (row) and likeliest class (column).
        top5_hits: int64 (K,), images of each label that have it among the five likeliest.
        loss: float64 scalar, Σ −log probability of the label.
        bins: int64 (2, M), images in each bin of confidence, and those of them that are right.
        confidence: float64 (M,), Σ of the largest probabilities in each bin.
    """

    def __init__(self, classes: int, device: torch.device | None = None) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        self.top5_hits = torch.zeros(classes, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.bins = torch.zeros(2, BINS, dtype=torch.int64, device=device)
        self.confidence = torch.zeros(BINS, dtype=torch.float64, device=device)
        self._edges = torch.arange(1, BINS, dtype=torch.float64, device=device) / BINS

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Count a batch; nothing here waits for the device.

        Args:
            probabilities: float64 (B, K).
            labels: int64 (B,), below K.
        """
        confidence, guesses = probabilities.max(dim=1)  # the first of equal ones, as torch documents
        ones = torch.ones_like(labels)
        hits = (guesses == labels).long()
        cells = labels * len(self.confusion) + guesses
        self.confusion.view(-1).scatter_add_(0, cells, ones)
        self.top5_hits.scatter_add_(0, labels, (label_ranks(probabilities, labels) < 5).long())
        own = probabilities.gather(1, labels[:, None]).clamp_min(1e-300)
        self.loss -= own.log().sum()
        bins = torch.bucketize(confidence, self._edges)  # bin m holds (m / M, (m + 1) / M]
        self.bins[0].scatter_add_(0, bins, ones)
        self.bins[1].scatter_add_(0, bins, hits)
        self.confidence.scatter_add_(0, bins, confidence)

    def merge(self) -> None:
        """Sum over all processes; each has the same sums afterwards."""
        for sums in (self.confusion, self.top5_hits, self.loss, self.bins, self.confidence):
            all_sum(sums)

    @property
    def samples(self) -> int:
        """Images counted."""
        return int(self.bins[0].sum())

    def per_class(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Images of each label, and those of them with it first, and among the first five: (K,) each."""
        images, hits = self.confusion.sum(dim=1), self.confusion.diagonal()
        return images.cpu().numpy(), hits.cpu().numpy().copy(), self.top5_hits.cpu().numpy()

    def metrics(self) -> Metrics:
        """The sums as metrics; the loss is NaN where a probability was.

        Raises:
            ValueError: nothing was counted.
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
            loss=float(self.loss) / samples,
            ece=calibration_error(self.bins[0], self.bins[1], self.confidence),
            largest_class=int(images.max()) / samples,
        )
