"""An epoch's running totals and timing."""

import time
from pathlib import Path

import pytest
import torch

from pipeline.loader.stats import LoaderStats
from trainer.distributed.env import DistEnv
from trainer.training.progress import EpochTimer, MemoryUse, Reading, RunningTotals, resident_mb

STATS = LoaderStats(20, 0.01, 0.2, 0.1, wait=0.125, ready=0.25, under_way=2.75)


def test_totals_add_up_and_keep_the_last_loss():
    totals = RunningTotals(DistEnv())
    for step, (loss, correct) in enumerate([(2.0, 3.0), (1.0, 5.0)], 1):
        totals.add(torch.tensor(loss), torch.tensor(correct), 8, step)
    reading = totals.peek()
    assert (reading.loss_sum, reading.correct, reading.images) == (24.0, 8.0, 16.0)
    assert (reading.loss, reading.diverged) == (1.0, 0.0)
    assert totals.read() == reading
    totals.restart()
    assert totals.read().images == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_step_whose_loss_is_not_finite_is_kept(bad):
    totals = RunningTotals(DistEnv())
    for step, loss in enumerate([2.0, bad, 1.0, bad], 41):
        totals.add(torch.tensor(loss), torch.tensor(0.0), 8, step)
    assert totals.read().diverged == 42


def test_a_resumed_epoch_continues_from_saved_sums():
    totals = RunningTotals(DistEnv())
    totals.sums.add_(torch.tensor([10.0, 4.0, 6.0]))
    totals.add(torch.tensor(0.5), torch.tensor(1.0), 2, 1)
    assert totals.sums.tolist() == [11.0, 5.0, 8.0]


@pytest.fixture
def clock(monkeypatch):
    """`clock[0]` is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_only_waiting_for_batches_is_counted(clock):
    def slow():
        for number in range(3):
            clock[0] += 5.0
            yield number
        clock[0] += 0.5  # time to find that there are no more

    timer = EpochTimer(epoch=0, epochs=1, first=0, total=3, batch_size=1, lr=0.1)
    for _ in timer.batches(slow()):
        clock[0] += 2.0
    assert timer.waited == 15.5


def test_metrics_within_an_epoch_begun_by_an_earlier_process(clock):
    """Resumed after step 40 of 100; 20 steps of 128 images took 10 s, and a validation between them 7 s."""
    timer = EpochTimer(
        epoch=2, epochs=5, first=40, total=100, batch_size=128, lr=0.01, val_steps=50, started=100
    )
    clock[0] += 4.0
    with timer.validating():
        clock[0] += 7.0
    clock[0] += 6.0
    timer.waited, timer.loader = 2.5, lambda: STATS
    memory = MemoryUse(DistEnv())
    memory.mb, memory.rest_mb = 321.0, 45.0
    row = timer.row(60, 260, Reading(0.0, 30.0, 120.0, 1.5, 0.0), memory)
    assert (row.epoch, row.done, row.total, row.steps) == (3, 60, 100, 260)
    assert (row.loss, row.top1, row.lr, row.memory_mb, row.gpu_rest_mb) == (1.5, 0.25, 0.01, 321.0, 45.0)
    assert row.images_per_second == 20 * 128 / 10
    assert (row.data_wait, row.loader) == (0.25, STATS)
    # 40 steps of this epoch and 200 of two more, half a second each, and validations of three epochs and four
    # within them
    assert row.seconds_left == pytest.approx(240 * 0.5 + 7 * 7.0)


@pytest.mark.parametrize(
    ("total", "done", "known"), [(100, 9, False), (100, 10, True), (3, 2, False), (3, 3, True)]
)
def test_after_few_steps_no_time_left_is_given(clock, total, done, known):
    timer = EpochTimer(epoch=0, epochs=2, first=0, total=total, batch_size=1, lr=0.1, started=100)
    clock[0] += done
    assert timer.seconds_left(done, timer.seconds) == (2 * total - done if known else None)


def test_a_gpus_memory_is_torchs_and_the_rest_which_is_measured_once_a_second(monkeypatch):
    clock = iter((0.0, 0.0, 0.5, 2.0, 2.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    free = iter((6e9, 5e9))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (next(free), 10e9))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 2e9)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 3e9)
    memory = MemoryUse(DistEnv(kind="gpu"))
    assert [(memory.read().mb, memory.rest_mb) for _ in range(3)] == [(2e3, 1e3), (2e3, 1e3), (2e3, 2e3)]


def test_resident_memory_is_known_without_proc(monkeypatch):
    with_proc = resident_mb()
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    assert with_proc / 2 < resident_mb() < 10 * with_proc
