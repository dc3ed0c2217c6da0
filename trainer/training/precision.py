"""Choose the floating-point precision of a run."""

from dataclasses import dataclass

import torch

from trainer.distributed.env import Kind
from trainer.recipe import Recipe


@dataclass(frozen=True)
class Precision:
    """A recipe's precision as this machine can compute it.

    Attributes:
        dtype: Type of convolutions and matrix products.
        device: "cuda" or "cpu".
        note: Why `dtype` is not the recipe's, for the log; "" where it is.
    """

    dtype: torch.dtype
    device: str
    note: str = ""

    @property
    def is_mixed(self) -> bool:
        """Whether autocast is on."""
        return self.dtype != torch.float32

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """Return a loss scaler for float16, whose small gradients underflow without one, or None."""
        return torch.amp.GradScaler(self.device) if self.dtype == torch.float16 else None


def choose_precision(recipe: Recipe, kind: Kind) -> Precision:
    """Choose the precision, and switch TensorFloat-32 on or off as the recipe says (GPU only, globally).

    bfloat16 is replaced where it is slow. GPUs before Ampere (compute capability 8) have no bfloat16 units
    and use float16 with loss scaling. On CPUs before AVX-512 torch computes bfloat16 element by element,
    more than ten times as slowly as float32, and float32 is used.
    """
    device = "cuda" if kind == "gpu" else "cpu"
    if kind == "gpu":
        torch.backends.cuda.matmul.allow_tf32 = recipe.tf32
        torch.backends.cudnn.allow_tf32 = recipe.tf32
    dtype: torch.dtype = getattr(torch, recipe.precision)
    if dtype == torch.bfloat16 and kind == "gpu" and torch.cuda.get_device_capability() < (8, 0):
        name = torch.cuda.get_device_name()
        return Precision(torch.float16, device, f"{name} has no bfloat16: float16 with loss scaling instead")
    if dtype == torch.bfloat16 and kind == "cpu" and not cpu_has_bfloat16():
        return Precision(torch.float32, device, "this processor has no bfloat16: float32 instead")
    return Precision(dtype, device)


def cpu_has_bfloat16() -> bool:
    """Whether torch has bfloat16 kernels for this processor, not only a reference implementation."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def in_words(recipe: Recipe, precision: Precision) -> str:
    """Describe precision and TF32 for the log, such as "bfloat16, TF32 on"."""
    name = str(precision.dtype).removeprefix("torch.")
    return f"{name}, TF32 {'on' if recipe.tf32 else 'off'}" if precision.device == "cuda" else name
