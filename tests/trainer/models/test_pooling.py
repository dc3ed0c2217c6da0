"""Max pooling: torch's, also where it is compiled for a CPU."""

import pytest
import torch
import torch.nn.functional as F

from trainer.models.alexnet import build_model
from trainer.models.layers import MaxPool2d


def pooled(layer, x):
    """Maxima, and the gradient of their squares' sum."""
    x = x.detach().requires_grad_()
    maxima = layer(x)
    maxima.square().sum().backward()
    return maxima.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(55, 55), (27, 13), (3, 8)])
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
    """A Sequential alone is compiled in pieces."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_source", "alexnet_bn", "alexnet_owt"])
def test_all_pooling_of_a_net_is_left_to_torch_when_compiled(arch):
    net, seen = build_model(arch, 10, 0.05).eval(), []

    def backend(graph, _inputs):
        seen.append(graph.code)
        return graph

    with torch.no_grad():
        torch.compile(Whole(net), backend=backend, fullgraph=True)(torch.randn(1, 3, 224, 224))
    code = "".join(seen)
    assert code.count("torch.ops.alexnet.max_pool") == 3
    assert "max_pool2d" not in code
