"""Smaller gradients between processes, by torch's own hooks for DistributedDataParallel."""

from typing import Any, cast

import numpy as np
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import UsageError
from trainer.distributed.env import Kind
from trainer.recipe import Recipe

# Vogels, Karimireddy and Jaggi 2019 use ranks of 1 to 4; torch's own default for the start is 1,000.
_RANK = 4
_FIRST_UPDATES = 1_000


def check_compression(recipe: Recipe, kind: Kind) -> None:
    """Refuse what the processes cannot do.

    Raises:
        UsageError: bfloat16 sums, which gloo has not.
    """
    if recipe.grad_compression == "bf16" and kind == "cpu":
        raise UsageError(
            "--grad-compression bf16 needs GPUs and NCCL, and these are CPU processes; use powersgd or none"
        )


class Compression:
    """A recipe's compression of gradients, registered with a model, and its memory.

    "bf16" halves the bytes. "powersgd" exchanges matrices of low rank after the first updates, and keeps
    what they leave out for the next; that memory is this process's alone and part of its checkpoint.
    """

    def __init__(self, model: DistributedDataParallel, recipe: Recipe, device: torch.device) -> None:
        self._device = device
        self._state: PowerSGDState | None = None
        if recipe.grad_compression == "bf16":
            model.register_comm_hook(None, bf16_compress_hook)
        elif recipe.grad_compression == "powersgd":
            self._state = PowerSGDState(
                None, matrix_approximation_rank=_RANK, start_powerSGD_iter=_FIRST_UPDATES
            )
            model.register_comm_hook(self._state, powerSGD_hook)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers; empty where nothing is remembered."""
        state = self._state
        if state is None:
            return {}
        kind, keys, *rest = cast(tuple[Any, ...], state.rng.get_state())
        return {
            "iter": state.iter,
            "rng": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            "errors": dict(state.error_dict),
            "p": dict(state.p_memory_dict),
            "q": dict(state.q_memory_dict),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore `state_dict`; an empty one is the state before the first update."""
        state = self._state
        if state is None:
            return
        fresh = PowerSGDState(None, start_powerSGD_iter=_FIRST_UPDATES)
        state.iter = saved.get("iter", 0)
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
