"""Layers of the 2012 network that torch lacks, or has only slowly.

Shapes: B batch, C channels, H, W map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def inverse_power_3_4(d: Tensor) -> Tensor:
    """d^-0.75 for positive d, by two square roots: several times faster than a power on CPUs."""
    root = torch.rsqrt(d)
    return root * torch.sqrt(root)


def at_least_float32(x: Tensor) -> Tensor:
    """Upcast half precision: squares and small addends vanish in it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class LocalResponseNorm(nn.Module):
    """b = a / (k + α Σ a²)^0.75, the sum over `size` neighboring channels (paper, section 3.3).

    α multiplies the sum, as the paper writes it; torch's layer of this name divides it by `size`
    first. Channels beyond the edge count as zero. With `groups`, the channels are as many separate
    halves and no sum reaches across. Written as a sum of shifted slices, which compiles to one kernel.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, k: float = 2.0, groups: int = 1) -> None:
        super().__init__()
        self.size, self.alpha, self.k, self.groups = size, alpha, k, groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W); the dtype is kept, half precision is summed in float32."""
        batch, total_channels, height, width = x.shape
        # (B, groups, C / groups, H, W)
        a = at_least_float32(x).reshape(batch, self.groups, total_channels // self.groups, height, width)
        channels, half = a.shape[2], self.size // 2
        squares = F.pad(a * a, (0, 0, 0, 0, half, self.size - 1 - half))
        total = squares[:, :, :channels]
        for shift in range(1, self.size):
            total = total + squares[:, :, shift : shift + channels]
        return (a * inverse_power_3_4(self.k + self.alpha * total)).reshape(x.shape).to(x.dtype)

    def extra_repr(self) -> str:
        """Arguments for print()."""
        return f"size={self.size}, alpha={self.alpha}, k={self.k}, groups={self.groups}"


class SpatialResponseNorm(nn.Module):
    """x / (1 + α · mean of x² over a size × size window)^0.75 within each channel.

    The released source's second normalization of conv2 ("rnorm"), α = 1e-3; zeros beyond the edge are
    counted in the mean.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-3) -> None:
        super().__init__()
        self.size, self.alpha = size, alpha

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W); the dtype is kept, half precision is summed in float32."""
        a = at_least_float32(x)
        mean = F.avg_pool2d(a * a, self.size, stride=1, padding=self.size // 2)
        return (a * inverse_power_3_4(1.0 + self.alpha * mean)).to(x.dtype)

    def extra_repr(self) -> str:
        """Arguments for print()."""
        return f"size={self.size}, alpha={self.alpha}"


class PaperDropout(nn.Module):
    """Zero with probability ½ in training, multiply by ½ in use (paper, section 4.2).

    Torch's dropout scales in training instead; the expectation relative to use is the same, but the
    activations, and so the effective rate, are half as large here.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop or halve any shape."""
        if not self.training:
            return x * 0.5
        return x * (torch.rand_like(x) < 0.5)


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
