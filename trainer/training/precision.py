"""In which precision a run computes."""

from dataclasses import dataclass

import torch

from trainer.distributed.env import Kind
from trainer.recipe import Recipe


@dataclass(frozen=True)
class Precision:
    """What a recipe's precision becomes on a machine.

    Attributes:
        dtype: of convolutions and matrix products.
        device: "cuda" or "cpu".
        note: why it is not what the recipe says, or "".
    """

    dtype: torch.dtype
    device: str
    note: str = ""

    @property
    def is_mixed(self) -> bool:
        """Whether autocast is on."""
        return self.dtype != torch.float32

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """A scaler of losses for float16, whose smallest gradients vanish without; else None."""
        return torch.amp.GradScaler(self.device) if self.dtype == torch.float16 else None


def choose_precision(recipe: Recipe, kind: Kind) -> Precision:
    """Choose the precision and switch TensorFloat-32 on or off, as the recipe says.

    GPUs before Ampere (compute capability 8) have no bfloat16 units: float16 with loss scaling takes its
    place there. On CPUs before AVX-512 torch computes bfloat16 element by element, more than ten times
    as slowly as float32, which takes its place.
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
    """Whether torch has more than a reference implementation of bfloat16 for this processor."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def in_words(recipe: Recipe, precision: Precision) -> str:
    """Precision and TF32 choice for the log."""
    name = str(precision.dtype).removeprefix("torch.")
    return f"{name}, TF32 {'on' if recipe.tf32 else 'off'}" if precision.device == "cuda" else name
