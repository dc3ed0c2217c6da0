"""Optimizers against the published equations in NumPy float64, and each parameter's learning rate."""

import copy

import numpy as np
import pytest
import torch

from trainer.models.alexnet import build_model
from trainer.optim.optimizers import LARS, PaperSGD, build_optimizer, set_lrs
from trainer.recipe import Recipe, Stage


def gradients(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, 5))


def start() -> np.ndarray:
    return np.random.default_rng(99).normal(size=5)


def paper_equations(w, gradients, lrs, momentum=0.9, decay=0.0005):
    """Section 5: v ← 0.9 v − 0.0005 ε w − ε ∂L/∂w;  w ← w + v."""
    w, v = w.copy(), np.zeros_like(w)
    for gradient, lr in zip(gradients, lrs, strict=True):
        v = momentum * v - decay * lr * w - lr * gradient
        w = w + v
    return w


def descend(make_optimizer, gradients, lrs):
    """Take the same steps with a torch optimizer."""
    w = torch.nn.Parameter(torch.from_numpy(start()))
    optimizer = make_optimizer([w], lrs[0])
    for gradient, lr in zip(gradients, lrs, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        w.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return w.detach().numpy()


def paper_sgd(params, lr):
    return PaperSGD(params, lr, momentum=0.9, weight_decay=0.0005)


def torch_sgd(params, lr):
    return torch.optim.SGD(params, lr, momentum=0.9, weight_decay=0.0005)


DROPPING = [0.01] * 10 + [0.001] * 10


def test_torchs_sgd_differs_from_the_paper_after_a_change_of_rate():
    expected = paper_equations(start(), gradients(20), DROPPING)
    torchs = descend(torch_sgd, gradients(20), DROPPING)
    # The paper's velocity contains the old learning rate, so that after the drop the two velocities differ.
    assert np.abs(torchs - expected).max() > 0.1 * np.abs(expected - start()).max()


def test_paper_sgd_equals_torchs_at_a_constant_rate():
    lrs = [0.03] * 50
    np.testing.assert_allclose(
        descend(paper_sgd, gradients(50), lrs), descend(torch_sgd, gradients(50), lrs), rtol=1e-12
    )


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 0.0005), (0.9, 0.0), (0.0, 0.1)])
def test_paper_sgd_is_the_papers_equations_over_a_change_of_rate(momentum, decay):
    expected = paper_equations(start(), gradients(20), DROPPING, momentum, decay)
    got = descend(lambda p, lr: PaperSGD(p, lr, momentum, decay), gradients(20), DROPPING)
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def lars_equations(weights, gradients, lrs, momentum, decay, trust_coefficient):
    """Algorithm 1 of the 2017 paper on a list of float64 layers; one-dimensional ones have a ratio of 1."""
    weights = [w.copy() for w in weights]
    velocities = [np.zeros_like(w) for w in weights]
    for step, lr in enumerate(lrs):
        for k, w in enumerate(weights):
            g = gradients[step][k]
            norms = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            ratio = (
                trust_coefficient * norms[0] / (norms[1] + decay * norms[0])
                if w.ndim > 1 and min(norms) > 0
                else 1.0
            )
            velocities[k] = momentum * velocities[k] + lr * ratio * (g + decay * w)
            weights[k] = w - velocities[k]
    return weights


@pytest.mark.parametrize(
    ("momentum", "decay", "trust_coefficient"), [(0.9, 0.0005, 0.001), (0.0, 0.1, 0.02), (0.5, 0.0, 1.0)]
)
def test_lars_is_the_published_algorithm(momentum, decay, trust_coefficient):
    rng = np.random.default_rng(4)
    shapes = [(3, 4), (5, 2, 3, 3), (6,), (2, 2), (2, 3)]
    weights = [rng.normal(size=shape) * 10.0**k for k, shape in enumerate(shapes)]
    weights[3][:] = 0  # a layer whose weights are all zero
    gradients_ = [[rng.normal(size=shape) for shape in shapes] for _ in range(20)]
    for step in gradients_:
        step[4][:] = 0  # and one whose gradients are all zero
    lrs = [0.5] * 10 + [0.05] * 10
    parameters = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in weights]
    optimizer = LARS(parameters, 1.0, momentum, decay, trust_coefficient)
    for step, lr in zip(gradients_, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    expected = lars_equations(weights, gradients_, lrs, momentum, decay, trust_coefficient)
    for got, wanted in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=1e-12, atol=1e-15)


def test_paper_sgd_state_round_trip_goes_on_as_if_never_stopped():
    w = torch.nn.Parameter(torch.from_numpy(start()))
    optimizer = paper_sgd([w], 0.01)
    for gradient in gradients(20)[:10]:
        w.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    saved, weights = copy.deepcopy(optimizer.state_dict()), w.detach().clone()
    other = torch.nn.Parameter(weights)
    resumed = paper_sgd([other], 7.0)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["lr"] == 0.01
    for gradient in gradients(20)[10:]:
        for parameter, step in ((w, optimizer), (other, resumed)):
            parameter.grad = torch.from_numpy(gradient.copy())
            step.step()
    assert torch.equal(w, other)
    fresh = paper_sgd([torch.nn.Parameter(weights.clone())], 0.01)
    assert fresh.state_dict()["state"] == {}  # so the saved velocity mattered
    assert "momentum_buffer" in saved["state"][0]


@pytest.mark.parametrize("kind", [PaperSGD, LARS])
def test_a_closure_is_evaluated_and_parameters_without_gradient_are_skipped(kind):
    w, idle = torch.nn.Parameter(torch.tensor([2.0])), torch.nn.Parameter(torch.tensor([5.0]))
    optimizer = kind([w, idle], lr=0.5, momentum=0.0, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert (w.item(), idle.item()) == (0.0, 5.0)  # 2 − 0.5 · 4
    assert optimizer.step() is None


def small_recipe(**values) -> Recipe:
    return Recipe(
        **{"name": "test", "arch": "alexnet", "epochs": 10, "lr": 0.01, "width": 0.05, "crop": 64} | values
    )


def small_model(arch: str = "alexnet"):
    return build_model(arch, 10, 0.05, 64)


def by_layer(optimizer, key):
    return {(group["layer"], group["bias"]): group[key] for group in optimizer.param_groups}


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_source", "alexnet_owt", "alexnet_bn"])
def test_groups_hold_every_parameter_once_under_its_layer(arch):
    model = small_model(arch)
    optimizer = build_optimizer(model, small_recipe(arch=arch))
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            layer, kind = names[id(p)].rsplit(".", 1)
            assert group["layer"] == layer
            # Weights of batch normalization have one dimension and go with the biases.
            assert group["bias"] == (kind == "bias" or ".bn" in f".{layer}")


@pytest.mark.parametrize(("name", "kind"), [("paper", PaperSGD), ("sgd", torch.optim.SGD), ("lars", LARS)])
def test_recipes_choose_the_rule_and_its_numbers(name, kind):
    recipe = small_recipe(optimizer=name, momentum=0.8, trust_coefficient=0.02)
    optimizer = build_optimizer(small_model(), recipe)
    assert type(optimizer) is kind
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    if kind is LARS:
        assert {group["trust_coefficient"] for group in optimizer.param_groups} == {0.02}


@pytest.mark.parametrize("decay_biases", [True, False])
def test_decay_of_biases_is_the_recipes(decay_biases):
    optimizer = build_optimizer(small_model(), small_recipe(decay_biases=decay_biases, weight_decay=0.002))
    decays = by_layer(optimizer, "weight_decay")
    assert {decay for (_, bias), decay in decays.items() if not bias} == {0.002}
    assert {decay for (_, bias), decay in decays.items() if bias} == {0.002 if decay_biases else 0.0}


def test_rates_are_the_schedules_times_the_layers_times_the_biases():
    optimizer = build_optimizer(small_model(), small_recipe())
    set_lrs(optimizer, 0.02, Stage(epoch=0, bias_lr_factor=2.0, layer_lr_factors={"conv1": 0.1, "fc8": 0.0}))
    lrs = by_layer(optimizer, "lr")
    assert lrs[("conv1", False)] == pytest.approx(0.002)
    assert lrs[("conv1", True)] == pytest.approx(0.004)
    assert lrs[("conv2", False)] == 0.02
    assert lrs[("conv2", True)] == 0.04
    assert lrs[("fc8", False)] == lrs[("fc8", True)] == 0.0
    set_lrs(optimizer, 0.02, Stage(epoch=1))
    assert set(by_layer(optimizer, "lr").values()) == {0.02}


@pytest.mark.parametrize("optimizer", ["paper", "sgd", "lars"])
def test_a_frozen_layer_keeps_its_weights_though_it_has_velocity_and_decay(optimizer):
    torch.manual_seed(0)
    model = small_model()
    built = build_optimizer(model, small_recipe(optimizer=optimizer))

    def step(stage):
        set_lrs(built, 0.01, stage)
        model(60 * torch.randn(4, 3, 64, 64)).logsumexp(1).sum().backward()
        built.step()
        built.zero_grad()
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    before = step(Stage(epoch=0))
    after = step(Stage(epoch=72, layer_lr_factors={"conv1": 0.0}))
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("conv1."), name
