"""Gradient compression: a resumed run restores each rank's state."""

from dataclasses import replace

import pytest
import torch
from helpers.entries import run_compressed
from helpers.training_runs import assert_same_run
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

from trainer.distributed.comm_hooks import Compression
from trainer.distributed.env import Processes
from trainer.distributed.launch import launch
from trainer.runs import checkpoint
from trainer.training.options import Debugging, TrainJob

pytestmark = pytest.mark.usefixtures("quick_workers")


def test_a_compressed_run_goes_on_bit_for_bit_with_every_ranks_memory(tiny_recipe, tiny_dataset, tmp_path):
    recipe = replace(tiny_recipe, epochs=2, batch_size=30, grad_compression="powersgd")
    whole = TrainJob(tiny_dataset.root, tmp_path / "whole", recipe)
    cut = replace(whole, out=tmp_path / "cut")
    parts = replace(cut, debugging=Debugging(steps=4)), replace(cut, resume="must")
    launch(Processes("cpu", 2, ""), run_compressed, whole, *parts)
    assert_same_run(whole.out, cut.out)
    memory = [rank["compression"] for rank in checkpoint.load(whole.out / "last.pt")["ranks"]]
    assert memory[0]["iter"] == memory[1]["iter"] == 6
    errors = [memory[rank]["errors"] for rank in range(2)]
    assert errors[0].keys() == errors[1].keys() != set()
    assert any(not torch.equal(errors[0][bucket], errors[1][bucket]) for bucket in errors[0])


def test_what_other_processes_get_is_on_the_cpu(tiny_recipe):
    """Rank 0 gathers the states, and must not get tensors on the other ranks' GPUs."""

    class OnGpu:
        def cpu(self) -> torch.Tensor:
            return torch.ones(2)

    class Model:
        def register_comm_hook(self, state: PowerSGDState, _hook: object) -> None:
            for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
                memory[0] = OnGpu()

    recipe = replace(tiny_recipe, grad_compression="powersgd")
    state = Compression(Model(), recipe, torch.device("cpu")).state_dict()
    assert all(isinstance(state[name][0], torch.Tensor) for name in ("errors", "p", "q"))
