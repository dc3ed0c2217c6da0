"""Floating-point precision: of a run's training, and of everything that uses a trained network."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.arguments import check_word
from pipeline.errors import RunError, UsageError
from trainer.distributed.env import Kind
from trainer.recipe import Recipe

PrecisionName = Literal["float32", "tf32", "bfloat16", "float16"]
"""Precision in which a trained network is used; tf32 is float32 with factors rounded to TensorFloat-32."""


@dataclass(frozen=True)
class Precision:
    """How convolutions and matrix products are computed.

    Attributes:
        dtype: Their type; below float32 by autocast. In float64 the weights are float64 too.
        tf32: Let GPUs round the factors of float32 products to TensorFloat-32.
        note: Why `dtype` is not the recipe's, for the log; "" where it is.
    """

    dtype: torch.dtype = torch.float32
    tf32: bool = False
    note: str = ""

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} with TF32" if self.tf32 else name

    @property
    def is_mixed(self) -> bool:
        """Whether autocast is on."""
        return self.dtype in (torch.bfloat16, torch.float16)

    def new_scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        """Return a loss scaler for float16, whose small gradients underflow without one, or None."""
        return torch.amp.GradScaler(device.type) if self.dtype == torch.float16 else None

    @contextmanager
    def float32_products(self) -> Iterator[None]:
        """Compute float32 products with or without TF32 within the block, whatever torch is set to.

        torch's own settings, such as a notebook's, are restored at the end. On CPUs they may allow bfloat16
        (`torch.set_float32_matmul_precision("medium")`); the block does not.
        """
        backends: Any = torch.backends  # some of these attributes are made at run time
        cuda = backends.cuda.matmul, backends.cudnn.conv
        cpu = backends.mkldnn.matmul, backends.mkldnn.conv
        before = [(settings, settings.fp32_precision) for settings in (*cuda, *cpu)]
        try:
            for settings in (*cuda, *cpu):
                settings.fp32_precision = "tf32" if self.tf32 and settings in cuda else "ieee"
            yield
        finally:
            for settings, value in before:
                settings.fp32_precision = value

    @contextmanager
    def training(self) -> Iterator[None]:
        """Set torch up for training steps within the block: float32 products, and cuDNN's benchmark mode.

        All batches of a run have one shape, for which cuDNN then measures its algorithms once. It does not
        where deterministic algorithms were asked for.
        """
        cudnn = torch.backends.cudnn
        before = cudnn.benchmark
        cudnn.benchmark = not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
        try:
            with self.float32_products():
                yield
        finally:
            cudnn.benchmark = before


_NAMED = {
    "float32": Precision(),
    "tf32": Precision(tf32=True),
    "bfloat16": Precision(torch.bfloat16),
    "float16": Precision(torch.float16),
}


def check_precision(name: str, kind: Kind) -> None:
    """Check that a precision exists and that processes of a kind can have it.

    Raises:
        UsageError: There is no such precision (the message names the nearest), or it is tf32 on the CPU.
    """
    check_word("precision", name, PrecisionName)
    if name == "tf32" and kind == "cpu":
        raise UsageError("precision tf32: only GPUs compute in it, and these are CPU processes; use float32")


@contextmanager
def computing(name: PrecisionName, device: torch.device) -> Iterator[None]:
    """Compute a trained network in a precision within the block.

    Validation, evaluation, prediction, features and figures all run in such a block, by default in float32
    without TF32. Neither the precision of training, nor torch's settings, nor an autocast around it matter.

    Args:
        name: The precision.
        device: The network's device.

    Raises:
        UsageError: The device does not have the precision; see `check_precision`.
        RunError: The GPU is out of memory.
    """
    check_precision(name, "cpu" if device.type == "cpu" else "gpu")
    if device.type == "cuda" and name in ("tf32", "bfloat16") and _before_ampere(device):
        raise UsageError(f"precision {name}: {torch.cuda.get_device_name(device)} lacks it; use float32")
    chosen = _NAMED[name]
    try:
        with (
            chosen.float32_products(),
            torch.autocast(device.type, chosen.dtype, enabled=chosen.is_mixed),
        ):
            yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"{device} is out of memory; use smaller batches (--batch-size; in training --set batch_size), "
            "or a GPU that no other program uses"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU has no memory left for torch, or for a library that torch calls."""
    words = ("out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in words)


def choose_precision(recipe: Recipe, kind: Kind) -> Precision:
    """Choose the precision of a recipe's training as this machine can compute it.

    bfloat16 is replaced where it is slow. GPUs before Ampere (compute capability 8) have no bfloat16 units
    and use float16 with loss scaling. On CPUs before AVX-512 torch computes bfloat16 element by element,
    more than ten times as slowly as float32, and float32 is used.
    """
    dtype: torch.dtype = getattr(torch, recipe.precision)
    tf32 = recipe.tf32 and kind == "gpu"
    if dtype == torch.bfloat16 and kind == "gpu" and _before_ampere():
        name = torch.cuda.get_device_name()
        return Precision(torch.float16, tf32, f"{name} has no bfloat16: float16 with loss scaling instead")
    if dtype == torch.bfloat16 and kind == "cpu" and not cpu_has_bfloat16():
        return Precision(note="this processor has no bfloat16: float32 instead")
    return Precision(dtype, tf32)


def cpu_has_bfloat16() -> bool:
    """Whether torch has bfloat16 kernels for this processor, not only a reference implementation."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _before_ampere(device: torch.device | None = None) -> bool:
    return torch.cuda.get_device_capability(device) < (8, 0)
