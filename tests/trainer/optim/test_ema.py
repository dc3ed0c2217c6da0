"""The EMA of the weights against its formula in NumPy."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from pipeline.errors import UsageError
from trainer.optim.ema import Ema
from trainer.runs import checkpoint
from trainer.runs.load_model import load_model


def values(classifier) -> dict[str, np.ndarray]:
    state = classifier.state_dict()
    return {n: v.numpy().copy() for n, v in state.items() if n.startswith("model.") and v.is_floating_point()}


@pytest.fixture
def averaged(tiny_classifier):
    """A classifier after 30 random changes, its EMA, and the same average computed by NumPy."""
    averages = Ema(tiny_classifier, 0.7)
    expected = {name: value.astype(np.float64) for name, value in values(tiny_classifier).items()}
    generator = torch.Generator().manual_seed(3)
    for t in range(1, 31):
        with torch.no_grad():
            for name, value in tiny_classifier.state_dict().items():
                if name.startswith("model.") and value.is_floating_point():
                    value.add_(torch.randn(value.shape, generator=generator))
        averages.update()
        decay = min(0.7, (1 + t) / (10 + t))
        now = values(tiny_classifier)
        expected = {name: decay * mean + (1 - decay) * now[name] for name, mean in expected.items()}
    return tiny_classifier, averages, expected


def test_weights_and_statistics_are_averaged_with_a_decay_that_rises(averaged):
    classifier, averages, expected = averaged
    raw = values(classifier)
    assert "model.bn1.running_var" in raw
    with averages.in_place():
        inside = values(classifier)
    assert inside.keys() == expected.keys()
    for name, mean in expected.items():
        np.testing.assert_allclose(inside[name], mean, rtol=1e-4, atol=1e-4)
        assert not np.allclose(raw[name], mean)
    after = values(classifier)
    assert all(np.array_equal(raw[name], after[name]) for name in raw)


def test_an_average_goes_on_where_it_was_saved(averaged):
    classifier, averages, _ = averaged
    other = Ema(classifier, 0.7)
    other.load_state_dict(averages.state_dict())
    for one in (averages, other):
        one.update()
    mine, theirs = averages.state_dict(), other.state_dict()
    assert mine["updates"] == theirs["updates"] == 31
    assert all(torch.equal(mine["mean"][name], theirs["mean"][name]) for name in mine["mean"])


@pytest.mark.parametrize(("weights", "own"), [(None, False), ("ema", False), ("model", True)])
def test_a_checkpoint_is_evaluated_by_its_average_or_by_its_own_weights(averaged, tmp_path, weights, own):
    classifier, averages, _ = averaged
    path = tmp_path / "last.pt"
    checkpoint.save(path, classifier, ema_weights=averages.state_dict())
    found = load_model(path, *([] if weights is None else [weights]))
    with nullcontext() if own else averages.in_place():
        expected = values(classifier)
    assert all(np.array_equal(expected[name], value) for name, value in values(found.classifier).items())
    assert ("model's own weights" if own else "averaged (EMA) weights;") in found.notes[0]


@pytest.mark.parametrize(
    ("content", "weights", "words"),
    [
        ({"averaged": True}, "model", "averaged .* weights only"),
        ({"averaged": False}, "ema", "no averaged"),
        ({}, "model", "one set"),
    ],
)
def test_weights_that_a_checkpoint_lacks_are_refused(averaged, tmp_path, content, weights, words):
    checkpoint.save(tmp_path / "best.pt", averaged[0], **content)
    with pytest.raises(UsageError, match=words):
        load_model(tmp_path / "best.pt", weights)
