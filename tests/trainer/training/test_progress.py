"""An epoch's sums."""

import pytest
import torch

from trainer.distributed.env import World
from trainer.training.progress import Meter


def test_a_meter_adds_up_and_knows_the_last_loss():
    meter = Meter(World())
    for step, (loss, correct) in enumerate([(2.0, 3.0), (1.0, 5.0)], 1):
        meter.add(torch.tensor(loss), torch.tensor(correct), 8, step)
    reading = meter.peek()
    assert (reading.loss_sum, reading.correct, reading.images) == (24.0, 8.0, 16.0)
    assert (reading.loss, reading.diverged) == (1.0, 0.0)
    assert meter.read() == reading
    meter.restart()
    assert meter.read().images == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_update_that_is_no_number_is_remembered(bad):
    meter = Meter(World())
    for step, loss in enumerate([2.0, bad, 1.0, bad], 41):
        meter.add(torch.tensor(loss), torch.tensor(0.0), 8, step)
    assert meter.read().diverged == 42


def test_sums_are_what_a_resumed_epoch_goes_on_from():
    meter = Meter(World())
    meter.sums.add_(torch.tensor([10.0, 4.0, 6.0]))
    meter.add(torch.tensor(0.5), torch.tensor(1.0), 2, 1)
    assert meter.sums.tolist() == [11.0, 5.0, 8.0]
