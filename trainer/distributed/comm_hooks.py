"""Gradient compression between processes, by torch's communication hooks for DistributedDataParallel."""

from typing import Any, cast

import numpy as np
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from trainer.recipe import Recipe

# PowerSGD: Vogels, Karimireddy and Jaggi 2019 use ranks of 1 to 4. 1,000 is torch's default of
# start_powerSGD_iter, the number of first steps without compression.
_RANK = 4
_FIRST_STEPS = 1_000


class Compression:
    """Gradient compression of one process: its DDP hook and the hook's state.

    "bf16" exchanges gradients in bfloat16, half the bytes. "powersgd" exchanges low-rank matrices after the
    first steps and adds the compression error to the next step's gradients. That error differs between
    processes, so each process's state is part of the checkpoint; other processes begin without an error.
    "none" registers no hook.
    """

    def __init__(self, model: DistributedDataParallel, recipe: Recipe, device: torch.device) -> None:
        """Register the hook of `recipe.grad_compression` on `model`, whose gradients are on `device`."""
        self._device = device
        self._state: PowerSGDState | None = None
        if recipe.grad_compression == "bf16":
            model.register_comm_hook(None, bf16_compress_hook)
        elif recipe.grad_compression == "powersgd":
            self._state = PowerSGDState(
                None, matrix_approximation_rank=_RANK, start_powerSGD_iter=_FIRST_STEPS
            )
            model.register_comm_hook(self._state, powerSGD_hook)

    def state_dict(self) -> dict[str, Any]:
        """Return PowerSGD's state (tensors on the CPU, numbers); empty for the other compressions."""
        state = self._state
        if state is None:
            return {}
        kind, keys, *rest = cast(tuple[Any, ...], state.rng.get_state())
        return {
            "rng": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            "errors": _on_cpu(state.error_dict),
            "p": _on_cpu(state.p_memory_dict),
            "q": _on_cpu(state.q_memory_dict),
        }

    def load_state_dict(self, saved: dict[str, Any], steps: int) -> None:
        """Restore a state.

        Args:
            saved: What `state_dict` returned; empty to begin without compression errors.
            steps: Steps of the run so far; the first ones are not compressed.
        """
        state = self._state
        if state is None:
            return
        fresh = PowerSGDState(None, start_powerSGD_iter=_FIRST_STEPS)
        state.iter = steps
        state.rng = fresh.rng
        if "rng" in saved:
            kind, keys, *rest = saved["rng"]
            state.rng.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        for memory, name in (
            (state.error_dict, "errors"),
            (state.p_memory_dict, "p"),
            (state.q_memory_dict, "q"),
        ):
            memory.clear()
            memory.update({key: value.to(self._device) for key, value in saved.get(name, {}).items()})


def _on_cpu(tensors: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Move tensors to the CPU: rank 0 gathers them, and would otherwise get them on other ranks' GPUs."""
    return {key: value.cpu() for key, value in tensors.items()}
