"""Training steps against the paper's equations in NumPy; `source`'s schedule against the released run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.entries import FLOAT32, without_dropout
from helpers.numpy_alexnet import loss_and_gradients, update

from trainer.models.alexnet import build_model
from trainer.optim.lr_schedule import Schedule
from trainer.optim.optimizers import build_optimizer, set_lrs
from trainer.recipe import Recipe, Stage, load_recipe
from trainer.training.step import train_step

STEPS = 20
RECIPE = Recipe(name="t", arch="alexnet", epochs=4, lr=0.001, width=0.05, crop=64, batch_size=6)


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(8)
    return [(10 * rng.normal(size=(6, 3, 64, 64)), rng.integers(0, 10, 6)) for _ in range(STEPS)]


def torch_model():
    torch.manual_seed(4)
    model = without_dropout(build_model("alexnet", 10, 0.05, 64)).double()
    with torch.no_grad():  # larger weights, so that each step changes the loss visibly
        for name, value in model.named_parameters():
            if name.endswith("weight"):
                value.mul_(2.0)
    return model


def test_gradients_are_those_of_numpy(batches):
    model = torch_model()
    images, labels = batches[0]
    weights = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    loss, gradients = loss_and_gradients(weights, images, labels)
    theirs = torch.nn.functional.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels))
    theirs.backward()
    assert theirs.item() == pytest.approx(loss, rel=1e-12)
    for name, value in model.named_parameters():
        assert np.abs(gradients[name]).max() > 0
        np.testing.assert_allclose(value.grad.numpy(), gradients[name], rtol=1e-9, atol=1e-14, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"decay_biases": False, "bias_lr_factor": 2.0}, {"decay_biases": False, "bias_factor": 2.0}),
    ],
)
def test_twenty_updates_with_drops_and_a_frozen_layer_are_those_of_numpy(batches, changes, options):
    """Epochs of five steps: the learning rate drops tenfold after the first, conv1 is frozen in the last."""
    stages = (Stage(epoch=1, lr_factor=0.1), Stage(epoch=3, layer_lr_factors={"conv1": 0.0}))
    recipe = replace(RECIPE, stages=stages, **changes)
    model = torch_model()
    optimizer, schedule = build_optimizer(model, recipe), Schedule(recipe)
    weights = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    start = {name: value.copy() for name, value in weights.items()}
    velocities = {name: np.zeros_like(value) for name, value in weights.items()}
    losses = []
    for step, (images, labels) in enumerate(batches):
        epoch = step // 5
        lr = 0.001 if epoch == 0 else 0.0001
        loss, gradients = loss_and_gradients(weights, images, labels)
        update(weights, velocities, gradients, lr, frozen=("conv1",) if epoch == 3 else (), **options)
        set_lrs(optimizer, schedule.lr(step / 5), recipe.stage_at(epoch))
        x, y = torch.from_numpy(images), torch.from_numpy(labels)
        theirs, *_ = train_step(model, optimizer, x, y, recipe, FLOAT32)
        assert theirs.item() == pytest.approx(loss, rel=1e-9)
        losses.append(loss)
    assert len({round(loss, 6) for loss in losses}) == STEPS
    for name, value in model.named_parameters():
        moved = np.linalg.norm(weights[name] - start[name])
        assert moved > 0
        assert np.linalg.norm(value.detach().numpy() - weights[name]) < 1e-8 * moved, name


# The released run of 2012 by its notes, which count epochs from 1: epochs → learning rate of conv1's weights
# and biases, and of the other layers' weights and biases; color noise. It was killed at epoch 91.
SOURCE = {
    range(1, 25): (0.01, 0.02, 0.01, 0.02, "source"),
    range(25, 51): (0.001, 0.02, 0.001, 0.02, "source"),
    range(51, 67): (0.0001, 0.02, 0.0001, 0.02, "source"),
    range(67, 72): (0.00001, 0.002, 0.0001, 0.02, "none"),
    range(72, 79): (0.0, 0.0, 0.0001, 0.02, "none"),
    range(79, 91): (0.0, 0.0, 0.00001, 0.02, "none"),
}


def test_the_released_runs_rates_epoch_by_epoch():
    recipe = load_recipe("source")
    model = build_model("alexnet_source", 10, 0.05, 64)
    optimizer, schedule = build_optimizer(model, recipe), Schedule(recipe)
    assert [epoch - 1 for epochs in SOURCE for epoch in epochs] == list(range(recipe.epochs))
    for epochs, (conv1_weights, conv1_biases, weights, biases, noise) in SOURCE.items():
        for epoch in (number - 1 for number in epochs):
            stage = recipe.stage_at(epoch)
            assert stage.color_noise == noise
            for part in (0.0, 0.5, 0.999):
                set_lrs(optimizer, schedule.lr(epoch + part), stage)
                for group in optimizer.param_groups:
                    of_weights, of_biases = (
                        (conv1_weights, conv1_biases) if group["layer"] == "conv1" else (weights, biases)
                    )
                    assert group["lr"] == pytest.approx(of_biases if group["bias"] else of_weights, rel=1e-12)
                    assert group["weight_decay"] == (0.0 if group["bias"] else 0.0005)
                    assert group["momentum"] == 0.9
