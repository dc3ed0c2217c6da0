"""Max pooling that stays torch's own kernel when a net is compiled for a CPU.

Shapes: B batch, C channels, H, W map.
"""

from typing import Any

import torch
from torch import Tensor, nn

_aten = torch.ops.aten


class MaxPool2d(nn.MaxPool2d):
    """torch's layer with square windows and no padding.

    Compiled for a CPU, torch would write loops of its own for it, which are slower: whole updates are 1.1 to
    1.4 times as fast without them (docs/benchmarks.md).
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__(size, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """The largest of each window of (B, C, H, W); the dtype is kept."""
        compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        opaque = compiling and x.device.type == "cpu"
        maxima: Tensor = _pool(x, self.kernel_size, self.stride)[0] if opaque else super().forward(x)
        return maxima


def _forward(x: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Maxima, and their places."""
    maxima, places = _aten.max_pool2d_with_indices(x, [size] * 2, [stride] * 2)
    return maxima, places


def _backward(gradient: Tensor, x: Tensor, size: int, stride: int, places: Tensor) -> Tensor:
    """The maxima's gradient, where they were found."""
    window = [size] * 2, [stride] * 2, [0, 0], [1, 1], False
    given: Tensor = _aten.max_pool2d_with_indices_backward(gradient, x, *window, places)
    return given


def _keep(ctx: Any, inputs: tuple[Tensor, int, int], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.size, ctx.stride = inputs
    ctx.save_for_backward(x, output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    x, places = ctx.saved_tensors
    return _pool_backward(gradient, x, ctx.size, ctx.stride, places), None, None


# Operations that no compiler looks into; what shapes and layouts come out, torch's own say without computing.
_pool = torch.library.custom_op("alexnet::max_pool", _forward, mutates_args=())
_pool_backward = torch.library.custom_op("alexnet::max_pool_backward", _backward, mutates_args=())
_pool.register_fake(_forward)
_pool_backward.register_fake(_backward)
_pool.register_autograd(_differentiate, setup_context=_keep)
