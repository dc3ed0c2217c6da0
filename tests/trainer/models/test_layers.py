"""Layers against NumPy float64 references of the paper's and the released source's formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer.models.alexnet import build_model
from trainer.models.layers import (
    LocalResponseNorm,
    MaxPool2d,
    PaperDropout,
    SpatialResponseNorm,
    inverse_power_3_4,
)


def random_maps(*shape: int, scale: float = 30.0, seed: int = 0) -> torch.Tensor:
    """Draw float64 feature maps, large enough for normalization to have an effect."""
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape))


def paper_lrn(a: np.ndarray, n: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0):
    """Section 3.3: b_i = a_i / (k + α Σ_{j = max(0, i − n/2)}^{min(N − 1, i + n/2)} a_j²)^β."""
    b = np.empty_like(a)
    channels = a.shape[1]
    for i in range(channels):
        window = a[:, max(0, i - n // 2) : min(channels - 1, i + n // 2) + 1]
        b[:, i] = a[:, i] / (k + alpha * (window**2).sum(axis=1)) ** beta
    return b


def spatial_reference(x: np.ndarray, size: int = 5, alpha: float = 1e-3) -> np.ndarray:
    """x / (1 + α · mean of x² over the window, zeros outside counted)^0.75."""
    half = size // 2
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)))
    y = np.empty_like(x)
    for row in range(height):
        for column in range(width):
            window = padded[:, :, row : row + size, column : column + size]
            mean = (window**2).sum(axis=(2, 3)) / size**2
            y[:, :, row, column] = x[:, :, row, column] / (1 + alpha * mean) ** 0.75
    return y


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 17, 96])
def test_lrn_is_the_papers_formula(channels):
    x = random_maps(2, channels, 3, 4)
    np.testing.assert_allclose(LocalResponseNorm()(x).numpy(), paper_lrn(x.numpy()), rtol=1e-12)
    theirs = F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2)
    torch.testing.assert_close(LocalResponseNorm()(x), theirs, rtol=1e-12, atol=0)


def test_sources_lrn_keeps_its_windows_inside_each_half():
    x = random_maps(2, 16, 3, 3)
    got = LocalResponseNorm(alpha=1e-4 / 5, groups=2)(x).numpy()
    halves = [paper_lrn(half, alpha=1e-4 / 5) for half in np.split(x.numpy(), 2, axis=1)]
    np.testing.assert_allclose(got, np.concatenate(halves, axis=1), rtol=1e-12)
    whole = paper_lrn(x.numpy(), alpha=1e-4 / 5)
    at_the_border = np.abs(got / whole - 1).max(axis=(0, 2, 3)) > 1e-9
    assert at_the_border.nonzero()[0].tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("side", [1, 4, 9])
def test_spatial_norm_is_the_sources_formula(side):
    x = random_maps(2, 3, side, side)
    np.testing.assert_allclose(SpatialResponseNorm()(x).numpy(), spatial_reference(x.numpy()), rtol=1e-12)


def test_inverse_power_is_the_power():
    d = torch.logspace(-3, 6, 200, dtype=torch.float64)
    np.testing.assert_allclose(inverse_power_3_4(d).numpy(), d.numpy() ** -0.75, rtol=1e-13)


@pytest.mark.parametrize("layer", [LocalResponseNorm(), LocalResponseNorm(groups=2), SpatialResponseNorm()])
def test_gradients_are_those_of_finite_differences(layer):
    x = random_maps(2, 6, 3, 3, scale=50).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), eps=1e-5, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("layer", [LocalResponseNorm(), SpatialResponseNorm()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_outside_and_left_inside(layer, dtype):
    x = random_maps(1, 8, 4, 4, scale=300).to(dtype)  # squares beyond float16's 65504
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, layer(x.double()).to(dtype), rtol=1e-2, atol=0)


def test_dropout_zeroes_half_and_does_not_rescale():
    torch.manual_seed(0)
    x = torch.full((400, 500), 3.0)
    y = PaperDropout().train()(x)
    assert set(y.unique().tolist()) == {0.0, 3.0}
    # 200,000 fair coins: a standard deviation is 0.0011.
    assert (y == 0).double().mean().item() == pytest.approx(0.5, abs=0.006)


def test_dropout_differs_between_presentations_and_units():
    torch.manual_seed(0)
    layer, x = PaperDropout().train(), torch.ones(8, 64)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    assert len({tuple(row) for row in first.tolist()}) == 8


def test_dropout_halves_in_use():
    x = random_maps(3, 4)
    assert torch.equal(PaperDropout().eval()(x), x / 2)


def test_dropouts_gradient_passes_where_the_unit_was_kept():
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    y = PaperDropout().train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def pooled(layer, x):
    """Return the maxima, and the gradient of the sum of their squares."""
    x = x.detach().requires_grad_()
    maxima = layer(x)
    maxima.square().sum().backward()
    return maxima.detach(), x.grad


@pytest.mark.parametrize(
    ("dtype", "layout", "height", "width"),
    [
        (torch.float32, torch.contiguous_format, 55, 55),
        (torch.float32, torch.channels_last, 3, 8),
        (torch.bfloat16, torch.contiguous_format, 3, 8),
        (torch.bfloat16, torch.channels_last, 27, 13),
    ],
)
def test_is_torchs_to_the_bit_eager_and_compiled(dtype, layout, height, width):
    x = torch.randn(3, 5, height, width, dtype=dtype).contiguous(memory_format=layout)
    x[0, 0] = 0  # ties
    torch.compiler.reset()
    wanted = pooled(lambda x: F.max_pool2d(x, 3, 2), x)
    layer = MaxPool2d(3, stride=2)
    for way in (layer, torch.compile(layer, fullgraph=True)):
        for got, theirs in zip(pooled(way, x), wanted, strict=True):
            assert torch.equal(got, theirs)
            assert got.stride() == theirs.stride()


def test_other_windows():
    x = torch.randn(2, 3, 16, 16)
    layer = MaxPool2d(2, stride=2)
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), F.max_pool2d(x, 2, 2))


class Whole(torch.nn.Module):
    """Wraps a Sequential, which torch.compile would otherwise compile in pieces."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_source", "alexnet_bn", "alexnet_owt"])
def test_all_pooling_of_a_net_is_left_to_torch_when_compiled(arch):
    model, seen = build_model(arch, 10, 0.05).eval(), []

    def backend(graph, _inputs):
        seen.append(graph.code)
        return graph

    with torch.no_grad():
        torch.compile(Whole(model), backend=backend, fullgraph=True)(torch.randn(1, 3, 224, 224))
    code = "".join(seen)
    assert code.count("torch.ops.alexnet.max_pool") == 3
    assert "max_pool2d" not in code
