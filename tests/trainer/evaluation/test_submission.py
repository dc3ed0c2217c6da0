"""Submission files, against a reader written from the devkit's description."""

import numpy as np
import pytest

from pipeline.errors import UsageError
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.submission import check_submission, write_submission

WNIDS = [f"n{number:08d}" for number in (11, 22, 33, 44, 55, 66, 77)]
# The devkit's IDs start at 1, and are not in the order of the WNIDs.
IDS = {wnid: (3 * number) % 7 + 1 for number, wnid in enumerate(WNIDS)} | {"n00000099": 8}


def drawn(count: int) -> Predictions:
    rng = np.random.default_rng(0)
    return Predictions(
        tuple(f"ILSVRC2012_val_{number + 1:08d}" for number in rng.permutation(count)),
        rng.integers(0, 7, count),
        np.stack([rng.permutation(7)[:5] for _ in range(count)]),
        np.full((count, 5), 0.1, np.float32),
    )


def flat_error(lines: list[str], truth: list[int], guesses: int) -> float:
    """Flat error as eval_flat.m: share of images whose ID is not among the first `guesses` of their line."""
    return np.mean(
        [label not in [*map(int, line.split())][:guesses] for line, label in zip(lines, truth, strict=True)]
    )


def test_lines_are_images_in_order_and_numbers_the_devkits(tmp_path):
    predictions = drawn(40)
    write_submission(tmp_path / "s.txt", predictions, WNIDS, IDS)
    text = (tmp_path / "s.txt").read_text()
    assert text.endswith("\n")
    lines = text.splitlines()
    assert len(lines) == 40
    assert all(len({*line.split()}) == 5 for line in lines)
    order = np.argsort(predictions.keys)
    truth = [IDS[WNIDS[label]] for label in predictions.labels[order]]
    for guesses in (1, 5):
        wrong = (predictions.classes[:, :guesses] != predictions.labels[:, None]).all(axis=1).mean()
        assert flat_error(lines, truth, guesses) == pytest.approx(wrong)


@pytest.mark.parametrize(
    ("keys", "classes", "message"),
    [
        (["ILSVRC2012_val_00000001", "cat_1"], WNIDS, "cat_1 is none of them"),
        (["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000003"], WNIDS, "image 2 is not in the data"),
        (["ILSVRC2012_val_00000002"], WNIDS, "image 1 is not in the data"),
        (["ILSVRC2012_val_00000001"], ["n00000011", "cat", "dog"], "it has no cat and 1 more;"),
    ],
)
def test_what_is_no_submission_is_refused(tmp_path, keys, classes, message):
    with pytest.raises(UsageError, match=message):
        check_submission(keys, classes, IDS)


def test_the_order_of_keys_is_no_matter():
    check_submission(["ILSVRC2012_test_00000002", "ILSVRC2012_test_00000001"], WNIDS, IDS)
