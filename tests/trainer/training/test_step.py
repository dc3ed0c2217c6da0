"""One step: returned loss, accumulation steps, and float16 loss scaling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.entries import FLOAT32, without_dropout
from torch import nn

from trainer.models.alexnet import build_model
from trainer.precision import Precision, choose_precision
from trainer.recipe import Recipe
from trainer.training.step import train_step

RECIPE = Recipe(name="t", arch="alexnet", epochs=1, lr=0.1)


@pytest.mark.parametrize(
    ("smoothing", "precision", "parts"),
    [
        (0.0, "float32", 1),
        (0.1, "float32", 4),
        (0.1, "bfloat16", 1),
        (0.0, "bfloat16", 2),
        (0.1, "float16", 2),
    ],
)
def test_a_step_returns_the_mean_loss_and_the_correct_guesses(smoothing, precision, parts):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, labels = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 1])
    recipe = replace(RECIPE, label_smoothing=smoothing, precision=precision, accumulation_steps=parts)
    precision = choose_precision(recipe, "cpu")
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    loss, correct, overflowed = train_step(
        model, optimizer, images, labels, recipe, precision, precision.new_scaler(torch.device("cpu"))
    )
    assert not loss.requires_grad
    assert not overflowed
    assert loss.dtype == correct.dtype == torch.float32
    with torch.no_grad():
        logits = model(images).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    tolerance = 1e-6 if precision == "float32" else 2e-2
    assert float(loss) == pytest.approx(-(target * log_p).sum(axis=1).mean(), rel=tolerance)
    assert float(correct) == (logits.argmax(axis=1) == labels.numpy()).sum()


@pytest.mark.parametrize("parts", [2, 6])
def test_a_batch_in_parts_moves_the_weights_as_a_whole_one(parts):
    """In float64, without dropout and batch normalization, which depend on how the batch is split."""
    torch.manual_seed(0)
    model = without_dropout(build_model("alexnet", 10, 0.1, 64)).double()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.randn(6, 3, 64, 64).double(), torch.arange(6)
    moved = []
    for steps in (1, parts):
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train_step(model, optimizer, images, labels, replace(RECIPE, accumulation_steps=steps), FLOAT32)
        moved.append({name: value - start[name] for name, value in model.state_dict().items()})
    for name, whole in moved[0].items():
        assert torch.allclose(moved[1][name], whole, rtol=1e-9, atol=1e-15)
        assert whole.abs().max() > 0


def test_an_update_whose_float16_gradients_overflow_changes_nothing_and_halves_the_scale():
    """Activations overflow too, and batch normalization keeps no statistics of them."""
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    precision = Precision(torch.float16)
    images, labels = torch.full((8, 4), 1e6), torch.zeros(8, dtype=torch.int64)
    *_, overflowed = train_step(model, optimizer, images, labels, RECIPE, precision, scaler)
    assert overflowed
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert scaler.get_scale() == 2.0**15
    images = torch.randn(8, 4)
    *_, overflowed = train_step(model, optimizer, images, labels, RECIPE, precision, scaler)
    assert not overflowed
    assert not torch.equal(model[0].weight, before["0.weight"])
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
