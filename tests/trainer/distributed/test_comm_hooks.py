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


@pytest.fixture
def two_jobs(tiny_recipe, tiny_dataset, tmp_path):
    """A compressed run of six steps, and one that is stopped after four."""
    recipe = replace(tiny_recipe, epochs=2, batch_size=30, grad_compression="powersgd")
    whole = TrainJob(tiny_dataset.root, tmp_path / "whole", recipe)
    return whole, replace(whole, out=tmp_path / "cut", debugging=Debugging(steps=4))


def errors_of(job):
    """The compression errors of each rank, bucket → tensor."""
    return [rank["compression"]["errors"] for rank in checkpoint.load(job.out / "last.pt")["ranks"]]


def test_a_compressed_run_goes_on_bit_for_bit_with_every_ranks_memory(two_jobs):
    whole, cut = two_jobs
    notes = launch(
        Processes("cpu", 2, ""), run_compressed, whole, cut, replace(whole, out=cut.out, resume="must")
    )
    assert notes == []
    assert_same_run(whole.out, cut.out)
    errors = errors_of(whole)
    assert errors[0].keys() == errors[1].keys() != set()
    assert any(not torch.equal(errors[0][bucket], errors[1][bucket]) for bucket in errors[0])


def test_other_processes_drop_the_errors_with_a_note_and_go_on_compressing(two_jobs):
    whole, cut = two_jobs
    launch(Processes("cpu", 2, ""), run_compressed, cut)
    assert len(errors_of(cut)) == 2
    note, dropped = launch(
        Processes("cpu", 3, ""), run_compressed, replace(whole, out=cut.out, resume="must")
    )
    assert "processes was 2, is 3: floating-point order may differ" in note
    assert "PowerSGD carried over are dropped: they belong to the gradients of 2 CPU processes" in dropped
    # Two steps are left, which without a memory of the run's steps would be the first, uncompressed ones.
    assert all(errors_of(cut))
    assert len(errors_of(cut)) == 3


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
