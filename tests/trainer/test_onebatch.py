"""One batch in place of the data."""

from dataclasses import replace

import pytest
import torch
from helpers.training_runs import train_here

from pipeline.errors import UsageError
from trainer.data import OneBatch, noise
from trainer.distributed.env import World
from trainer.runs import checkpoint
from trainer.training.options import Debugging, Job


def test_an_epoch_is_as_long_as_the_datas(tiny_recipe):
    one = OneBatch(noise(tiny_recipe, 4, 10, World()), 3)
    assert len(one) == 3
    batches = []
    for batch in one:
        batches.append((one.epoch, one.batch, batch))
    assert [(epoch, done) for epoch, done, _ in batches] == [(0, 1), (0, 2), (0, 3)]
    assert all(torch.equal(batch.images, batches[0][2].images) for *_, batch in batches)
    assert (one.epoch, one.batch) == (1, 0)


def test_noise_is_like_pixels_and_differs_between_ranks(tiny_recipe):
    plain = noise(tiny_recipe, 16, 10, World())
    assert plain.images.shape == (16, 3, 64, 64)
    assert plain.images.std().item() == pytest.approx(64, rel=0.02)
    divided = noise(replace(tiny_recipe, std="channel", channels_last=True), 16, 10, World(1, 2))
    assert divided.images.std().item() == pytest.approx(1, rel=0.02)
    assert divided.images.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(divided.labels, plain.labels)
    assert 0 <= int(plain.labels.min()) <= int(plain.labels.max()) < 10


def test_a_single_batch_is_learnt_by_heart(tiny_recipe, tiny_dataset, tmp_path):
    """Without dropout's noise in the way: alexnet_bn's loss on it falls to a tenth."""
    recipe = replace(tiny_recipe, width=0.25, epochs=20, batch_size=8, rate=0.02)
    job = Job(tiny_dataset.root, tmp_path / "run", recipe, debugging=Debugging(overfit_batch=True))
    rows = train_here(job).rows
    assert rows[-1].train_loss < 0.1 * rows[0].train_loss
    assert rows[-1].train_top1 == 1.0


def test_noise_trains_as_long_as_data_and_is_not_resumed(tiny_recipe, tiny_dataset, tmp_path):
    job = Job(
        tiny_dataset.root, tmp_path / "r", replace(tiny_recipe, epochs=1), debugging=Debugging(synthetic=True)
    )
    assert train_here(job).rows[-1].steps == 2  # 90 pictures in batches of 32
    assert checkpoint.load(job.out / "last.pt")["one_batch"] == "--synthetic"
    with pytest.raises(UsageError, match="made with --synthetic, which is not resumed"):
        train_here(replace(job, resume="must", debugging=Debugging()))


def test_one_of_the_two(tiny_recipe):
    with pytest.raises(UsageError, match="--synthetic and --overfit-batch were both given"):
        Debugging(synthetic=True, overfit_batch=True)
