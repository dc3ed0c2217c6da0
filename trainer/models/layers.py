"""Layers of the 2012 network that torch lacks or computes slowly.

Shapes: B batch, C channels, H, W height and width of the feature map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def inverse_power_3_4(d: Tensor) -> Tensor:
    """Compute d^-0.75 for positive d with two square roots, several times faster than `pow` on CPUs."""
    root = torch.rsqrt(d)
    return root * torch.sqrt(root)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, in which squares do not overflow and small addends are not lost."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class LocalResponseNorm(nn.Module):
    """Local response normalization b = a / (k + α Σ a²)^0.75 over neighboring channels (paper, section 3.3).

    The sum is computed from shifted slices, which torch.compile fuses into one kernel.

    Args:
        size: Number of neighboring channels in the sum; channels beyond the first and last count as zero.
        alpha: α multiplies the sum itself, as in the paper; torch's layer of this name multiplies by
            α / size. 1e-4 is the paper's.
        k: Addend in the denominator; 2 is the paper's.
        groups: Number of groups into which the channels are divided; no sum crosses a group's border.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, k: float = 2.0, groups: int = 1) -> None:
        super().__init__()
        self.size, self.alpha, self.k, self.groups = size, alpha, k, groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W). The output has x's dtype; half precision is summed in float32."""
        batch, total_channels, height, width = x.shape
        # a: (B, groups, C / groups, H, W)
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
    """Normalize each channel by x / (1 + α · mean of x² over a size × size window)^0.75.

    This is the second normalization after conv2 in the code released with the paper ("rnorm"), which has
    α = 1e-3 and a window of 5 × 5. Zeros beyond the edge are counted in the mean.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-3) -> None:
        super().__init__()
        self.size, self.alpha = size, alpha

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W). The output has x's dtype; half precision is summed in float32."""
        a = at_least_float32(x)
        mean = F.avg_pool2d(a * a, self.size, stride=1, padding=self.size // 2)
        return (a * inverse_power_3_4(1.0 + self.alpha * mean)).to(x.dtype)

    def extra_repr(self) -> str:
        """Arguments for print()."""
        return f"size={self.size}, alpha={self.alpha}"


class PaperDropout(nn.Module):
    """The paper's dropout: zero with probability ½ in training, multiply by ½ in inference (section 4.2).

    torch's dropout instead multiplies by 2 in training and does nothing in inference. The expected ratio
    between the two modes is the same, but activations, and so the effective learning rate, are half as
    large here.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop (training) or halve (inference) elements of a tensor of any shape."""
        if not self.training:
            return x * 0.5
        return x * (torch.rand_like(x) < 0.5)


_aten = torch.ops.aten


class MaxPool2d(nn.MaxPool2d):
    """Max pooling with square windows and no padding; on CPUs, torch.compile leaves it to torch's own kernel.

    The loops that torch.compile would generate for a CPU are slower: whole training steps are 1.1 to 1.4
    times as fast with torch's kernel (docs/benchmarks.md).
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__(size, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Take the maximum of each window of (B, C, H, W). The output has x's dtype."""
        compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        opaque = compiling and x.device.type == "cpu"
        maxima: Tensor = _pool(x, self.kernel_size, self.stride)[0] if opaque else super().forward(x)
        return maxima


def _forward(x: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return the maxima and their indices."""
    maxima, indices = _aten.max_pool2d_with_indices(x, [size] * 2, [stride] * 2)
    return maxima, indices


def _backward(gradient: Tensor, x: Tensor, size: int, stride: int, indices: Tensor) -> Tensor:
    """Return the gradient of x: the maxima's gradient at their indices, zero elsewhere."""
    window = [size] * 2, [stride] * 2, [0, 0], [1, 1], False
    input_gradient: Tensor = _aten.max_pool2d_with_indices_backward(gradient, x, *window, indices)
    return input_gradient


def _setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.size, ctx.stride = inputs
    ctx.save_for_backward(x, output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    x, indices = ctx.saved_tensors
    return _pool_backward(gradient, x, ctx.size, ctx.stride, indices), None, None


# Custom operations, which torch.compile does not look into. Both functions also work on fake tensors.
_pool = torch.library.custom_op("alexnet::max_pool", _forward, mutates_args=())
_pool_backward = torch.library.custom_op("alexnet::max_pool_backward", _backward, mutates_args=())
_pool.register_fake(_forward)
_pool_backward.register_fake(_backward)
_pool.register_autograd(_differentiate, setup_context=_setup_context)
