"""Metrics against scikit-learn, SciPy and NumPy, on random scores with and without ties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score

from trainer.evaluation.metrics import BINS, Tally, wilson
from trainer.evaluation.probabilities import topk_stable

scores_with_ties = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(2, 12)),
    elements=st.sampled_from([0.0, 0.125, 0.25, 0.5]),
)


def probabilities(samples: int, classes: int, seed: int, levels: int | None = None) -> np.ndarray:
    """Random rows that sum to 1; a few `levels` of values give most rows ties."""
    rng = np.random.default_rng(seed)
    scores = rng.random((samples, classes)) if levels is None else rng.integers(1, levels, (samples, classes))
    return scores / scores.sum(axis=1, keepdims=True)


def tallied(rows: np.ndarray, labels: np.ndarray, batch: int = 7) -> Tally:
    tally = Tally(rows.shape[1])
    for start in range(0, len(rows), batch):
        part = slice(start, start + batch)
        scores = torch.from_numpy(rows[part])
        tally.add(scores, torch.from_numpy(labels[part]), topk_stable(scores, 5))
    return tally


def order(rows: np.ndarray) -> np.ndarray:
    return np.argsort(-rows, axis=1, kind="stable")


@settings(max_examples=50)
@given(scores_with_ties, st.integers(1, 12))
def test_the_top_classes_are_the_head_of_a_stable_sort(scores, count):
    found = topk_stable(torch.from_numpy(scores), count)
    assert found.classes.dtype == torch.int64
    assert found.classes.tolist() == order(scores)[:, :count].tolist()
    assert found.values.tolist() == np.take_along_axis(scores, order(scores), 1)[:, :count].tolist()


@settings(max_examples=50)
@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_are_scipys(counts):
    successes, total = counts
    expected = binomtest(successes, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(successes, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


@pytest.mark.parametrize(("classes", "levels"), [(2, 4), (3, None), (12, None), (40, 4)])
def test_metrics_are_scikit_learns(classes, levels):
    samples = 500
    rows = probabilities(samples, classes, classes, levels)
    labels = np.random.default_rng(1).integers(0, classes, samples)
    guesses = order(rows)[:, 0]
    got = tallied(rows, labels)
    metrics = got.metrics()
    expected = confusion_matrix(labels, guesses, labels=range(classes))
    assert got.confusion.dtype == torch.int64
    assert np.array_equal(got.confusion.numpy(), expected)
    images, top1, top5 = got.per_class()
    assert np.array_equal(images, np.bincount(labels, minlength=classes))
    assert np.array_equal(top1, np.diag(expected))
    among = (order(rows)[:, :5] == labels[:, None]).any(axis=1)
    assert np.array_equal(top5, np.bincount(labels[among], minlength=classes))
    assert metrics.samples == got.samples == samples
    assert metrics.top1 == (guesses == labels).mean()
    assert metrics.top5 == among.mean()
    assert metrics.loss == pytest.approx(log_loss(labels, rows, labels=range(classes)), abs=1e-9)
    assert metrics.largest_class == np.bincount(labels).max() / samples
    assert metrics.top1_interval[0] < metrics.top1 < metrics.top1_interval[1]
    if classes > 5 and levels is None:
        assert metrics.top1 == top_k_accuracy_score(labels, rows, k=1, labels=range(classes))
        assert metrics.top5 == top_k_accuracy_score(labels, rows, k=5, labels=range(classes))


@pytest.mark.parametrize(("levels", "sharpness"), [(None, 8), (4, 1)])
def test_the_calibration_error_is_that_of_guos_formula(levels, sharpness):
    rows = probabilities(3000, 6, 5, levels) ** sharpness
    rows /= rows.sum(axis=1, keepdims=True)
    labels = np.random.default_rng(2).integers(0, 6, len(rows))
    confidence, right = rows.max(axis=1), order(rows)[:, 0] == labels
    expected, used = 0.0, 0
    for m in range(BINS):
        inside = (confidence > m / BINS) & (confidence <= (m + 1) / BINS)
        used += inside.any()
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert BINS == 15
    assert used >= 3
    assert tallied(rows, labels).metrics().ece == pytest.approx(expected, abs=1e-9)


def test_perfect_confidence_that_is_right_is_calibrated_and_wrong_is_not():
    rows = np.eye(4)
    assert tallied(rows, np.arange(4)).metrics().ece == 0.0
    assert tallied(rows, (np.arange(4) + 1) % 4).metrics().ece == 1.0


def test_nothing_counted_gives_no_metrics():
    with pytest.raises(ValueError, match="nothing was counted"):
        Tally(3).metrics()
