"""Runs that are stopped, killed, or meet damaged files and full disks, and still end with the same result."""

import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from helpers.entries import Recorder, run_job, run_with_other_data
from helpers.folders import tree
from helpers.training_runs import assert_same_run, command, finish, job_of, start, train_here

from pipeline.errors import RunError, UsageError
from pipeline.storage.locks import Lock, TakenOverError, locked
from trainer.callbacks.status import StatusCallback
from trainer.distributed import stop_signals
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch
from trainer.recipe import Stage
from trainer.runs import checkpoint, metrics_file
from trainer.runs.records import StepMetrics
from trainer.training import trainer
from trainer.training.options import Debugging, Saving, TrainJob
from trainer.training.trainer import train

pytestmark = pytest.mark.usefixtures("quick_workers")


def steps_so_far(out: Path) -> int:
    newest = checkpoint.steps_of(out)
    return int(newest[0].stem.partition("-")[2]) if newest else 0


def end_when(process: subprocess.Popen[str], how: signal.Signals, is_time, pause: float = 0.0) -> str:
    """Send a signal once `is_time()`: SIGKILL to all processes, others to the first; return the output."""
    while not is_time() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(pause)
    if how == signal.SIGKILL:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    output, _ = process.communicate(timeout=120)
    return output


@pytest.mark.parametrize(
    ("how", "processes"), [(signal.SIGTERM, 1), pytest.param(signal.SIGUSR1, 2, marks=pytest.mark.slow)]
)
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_same_end(
    tiny_dataset, tmp_path, how, processes
):
    cut, settings = tmp_path / "cut", {"epochs": 60, "batch_size": 10}
    options = ("--cpus", str(processes), "--checkpoint-steps", "1")
    process = start(command(tiny_dataset.root, cut, *options, **settings))
    output = end_when(process, how, lambda: (cut / "last.pt").exists())
    assert process.returncode == stop_signals.STOPPED == 75, output
    done = checkpoint.load(cut / "last.pt")["progress"]["steps"]
    assert f"stopped by {how.name} after update {done:,}, saved in {cut / 'last.pt'}" in output
    assert 0 < done < 540
    whole = job_of(tiny_dataset.root, tmp_path / "whole", **settings)
    whole = replace(whole, debugging=Debugging(steps=done + 9))  # both runs end here and are compared
    for job in (replace(whole, out=cut, resume="must"), whole):
        launch(Processes("cpu", processes, ""), run_job, job)
    assert_same_run(whole.out, cut)


def test_checkpoints_come_by_the_minute(tiny_recipe, tiny_dataset, tmp_path, monkeypatch):
    """Each reading of this clock advances it by 30 s; every step reads it once."""
    clock = iter(range(0, 100_000, 30))
    monkeypatch.setattr(trainer, "monotonic", lambda: next(clock))
    saved = []
    monkeypatch.setattr(checkpoint, "write_last", lambda folder, content, steps, keep: saved.append(steps))
    recipe = replace(tiny_recipe, epochs=1, batch_size=10)
    train_here(TrainJob(tiny_dataset.root, tmp_path / "a", recipe, saving=Saving(minutes=1.4)))
    assert saved == [3, 6, 9]
    saved.clear()
    train_here(TrainJob(tiny_dataset.root, tmp_path / "b", recipe, saving=Saving(minutes=None)))
    assert saved == [9]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tiny_recipe, tiny_dataset, tmp_path):
    recipe = replace(tiny_recipe, epochs=3)
    whole = TrainJob(tiny_dataset.root, tmp_path / "whole", recipe)
    train_here(whole)
    cut = replace(whole, out=tmp_path / "cut")
    train_here(cut, stop_after=2)
    content = bytearray((cut.out / "last.pt").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    (cut.out / "last.pt").write_bytes(content)  # also changes step-*.pt, a link to the same file
    recorder = train_here(replace(cut, resume="must"))
    (note,) = recorder.notes
    assert "last.pt: not a readable checkpoint" in note
    assert f"going on from {cut.out / 'step-00000002.pt'}" in note
    assert [row.epoch for row in recorder.rows] == [2, 3]
    assert_same_run(whole.out, cut.out)


def test_no_checkpoint_that_can_be_read_is_an_error(tiny_recipe, tiny_dataset, tmp_path):
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=3))
    train_here(job, stop_after=2)
    for path in job.out.glob("*.pt"):
        path.write_bytes(b"rot")
    with pytest.raises(UsageError, match=r"not a readable checkpoint.* no earlier one can be read either"):
        train_here(replace(job, resume="must"))


def test_a_full_disk_does_not_end_a_run(tiny_recipe, tiny_dataset, tmp_path, monkeypatch):
    write_last, calls = checkpoint.write_last, []

    def full_in_the_middle(folder, content, steps, keep):
        calls.append(steps)
        if steps in (4, 6):
            raise RunError(f"cannot write {folder / 'last.pt'}: No space left on device; free space")
        write_last(folder, content, steps, keep)

    monkeypatch.setattr(checkpoint, "write_last", full_in_the_middle)
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=4))
    recorder = train_here(job)
    assert calls == [2, 4, 6, 8]
    assert len(recorder.notes) == 2
    assert all("No space left" in note and "training goes on" in note for note in recorder.notes)
    assert [path.name for path in checkpoint.steps_of(job.out)] == ["step-00000008.pt", "step-00000002.pt"]


def test_a_full_disk_at_the_end_is_an_error(tiny_recipe, tiny_dataset, tmp_path, monkeypatch):
    def full(folder, content, steps, keep):
        raise RunError("cannot write last.pt: No space left on device")

    monkeypatch.setattr(checkpoint, "write_last", full)
    with pytest.raises(RunError, match="No space left"):
        train_here(TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=1)))


def test_weights_that_are_not_finite_are_never_saved(tiny_recipe, tiny_dataset, tmp_path):
    """The error names the step, and last.pt is of the step before: every step saves a checkpoint."""
    stages = (Stage(epoch=1, lr_factor=1e6),)
    recipe = replace(tiny_recipe, arch="alexnet_owt", lr=1e-3, batch_size=10, stages=stages)
    job = TrainJob(tiny_dataset.root, tmp_path / "run", recipe, saving=Saving(steps=1))
    with pytest.raises(RunError) as found:
        train_here(job)
    saved = checkpoint.load(job.out / "last.pt")
    steps = saved["progress"]["steps"]
    assert steps >= 9
    assert f"no longer finite at update {steps + 1}, in epoch 2" in str(found.value)
    assert f"{job.out / 'last.pt'} is of update {steps}" in str(found.value)
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "float16", "ema_decay": 0.9},
        {"accumulation_steps": 2, "optimizer": "lars", "trust_coefficient": 0.01},
        {"arch": "alexnet_source", "accumulation_steps": 5, "label_smoothing": 0.1},
    ],
)
def test_every_kind_of_state_is_in_a_checkpoint(tiny_recipe, tiny_dataset, tmp_path, changes):
    recipe = replace(tiny_recipe, epochs=2, batch_size=10, **changes)
    whole = TrainJob(tiny_dataset.root, tmp_path / "whole", recipe)
    train_here(whole)
    cut = replace(whole, out=tmp_path / "cut")
    for steps in (5, 9):  # within the first epoch, and at its end
        train_here(replace(cut, resume="auto", debugging=Debugging(steps=steps)))
    train_here(replace(cut, resume="auto"))
    assert_same_run(whole.out, cut.out)
    if "ema_decay" in changes:
        saved = checkpoint.load(whole.out / "last.pt")
        skipped = sum(row.overflows for row in metrics_file.read_metrics(whole.out))
        assert saved["ema_weights"]["updates"] == 18 - skipped
        assert not torch.equal(
            saved["ema_weights"]["mean"]["model.fc6.weight"], saved["model"]["model.fc6.weight"]
        )


def test_the_average_is_what_is_validated_and_kept_as_best(tiny_recipe, tiny_dataset, tmp_path):
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=1, ema_decay=0.5))
    train_here(job)
    last, best = (checkpoint.load(job.out / name) for name in ("last.pt", "best.pt"))
    for name, mean in last["ema_weights"]["mean"].items():
        assert torch.equal(best["model"][name], mean)
    assert best["averaged"]


def test_log_lines_and_endings_reach_the_callback(tiny_recipe, tiny_dataset, tmp_path):
    recipe = replace(tiny_recipe, epochs=2, batch_size=10)
    job = TrainJob(tiny_dataset.root, tmp_path / "run", recipe, debugging=Debugging(steps=12))
    recorder = train_here(job)
    assert recorder.endings == [
        ("finished", f"ended after update 12, saved in {job.out / 'last.pt'} (--max-steps)")
    ]
    assert [(row.epoch, row.done, row.total, row.steps) for row in recorder.steps] == [
        (1, 1, 9, 1),
        (1, 9, 9, 9),
        (2, 1, 9, 10),
    ]
    row = recorder.steps[1]
    assert row.top1 == pytest.approx(recorder.rows[0].train_top1)
    assert row.lr == recorder.rows[0].lr
    assert 0 <= row.data_wait <= 1
    assert row.memory_mb > 10


def test_a_callback_that_wants_weights_gets_the_last_update_of_each_epoch(
    tiny_recipe, tiny_dataset, tmp_path
):
    job = TrainJob(
        tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=2), saving=Saving(steps=1, keep=9)
    )
    recorder = train_here(job, looks=True)
    assert [(look.epoch, look.steps) for look in recorder.looks] == [(1, 2), (2, 4)]
    files = {steps: checkpoint.load(job.out / f"step-{steps:08d}.pt")["model"] for steps in (1, 2)}
    for name, update in recorder.looks[0].updates.items():
        before, after = (files[steps][f"model.{name}"] for steps in (1, 2))
        assert torch.equal(recorder.looks[0].weights[name], after)
        assert torch.equal(update, after - before)


def test_processes_of_other_data_are_refused_before_they_train(tiny_recipe, tiny_dataset, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_dataset.root, other)
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(manifest.replace('"seed": 0', '"seed": 1', 1))
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=1))
    with pytest.raises(UsageError, match=r"process 1 on .* has dataset [0-9a-f]{16}, process 0 [0-9a-f]{16}"):
        launch(Processes("cpu", 2, ""), run_with_other_data, job, other)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_which_another_process_works_is_refused_by_all_processes(
    tiny_recipe, tiny_dataset, tmp_path
):
    out = tmp_path / "run"
    job = TrainJob(tiny_dataset.root, out, replace(tiny_recipe, epochs=1))
    with locked(out / "run.lock", out), pytest.raises(UsageError, match=rf"process {os.getpid()} on"):
        launch(Processes("cpu", 2, ""), run_job, job)
    assert list(out.iterdir()) == []


class TakesOver(Recorder):
    """Takes over the run's folder, as another process does, in its second epoch."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.lock, self.out, self.left = Lock(out / "run.lock", out), out, {}

    def on_step(self, row: StepMetrics) -> None:
        super().on_step(row)
        if row.epoch == 2 and not self.left:
            while not (self.out / "last.pt").exists():  # written in the background
                time.sleep(0.01)
            self.lock.acquire(take_over=True)
            self.left = tree(self.out)


def test_a_run_whose_folder_was_taken_over_ends_and_writes_nothing_more(tiny_recipe, tiny_dataset, tmp_path):
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=4))
    recorder = TakesOver(job.out)
    with pytest.raises(TakenOverError, match="writes nothing more"):
        train(DistEnv(), job, [recorder, StatusCallback(job.out)])
    assert tree(job.out) == recorder.left
    assert recorder.endings == []
    assert [row.epoch for row in recorder.rows] == [1]


ENDS = 3
SETTINGS = {"epochs": 6, "batch_size": 6, "ema_decay": 0.9}  # 90 updates


@pytest.mark.slow
@pytest.mark.timeout(600)  # starts the command three times
@pytest.mark.parametrize(("processes", "how"), [(2, signal.SIGTERM), (3, signal.SIGKILL)])
def test_ends_at_random_moments_change_nothing(tiny_dataset, tmp_path, processes, how):
    """The run is ended at random moments and resumed each time."""
    cut, moments = tmp_path / "cut", random.Random(processes)
    options = ("--cpus", str(processes), "--checkpoint-steps", "1", "--resume")
    arguments = command(tiny_dataset.root, cut, *options, **SETTINGS)
    for _ in range(ENDS):
        before = steps_so_far(cut)
        after, pause = before + moments.randrange(1, 15), moments.random() * 0.05
        process = start(arguments)
        output = end_when(process, how, lambda after=after: steps_so_far(cut) >= after, pause)
        assert process.returncode in (75, -signal.SIGKILL), output
        assert steps_so_far(cut) >= before
    whole = job_of(tiny_dataset.root, tmp_path / "whole", **SETTINGS)
    for job in (replace(whole, out=cut, resume="must"), whole):
        launch(Processes("cpu", processes, ""), run_job, job)
    assert_same_run(whole.out, cut)
    assert [row.epoch for row in metrics_file.read_metrics(cut)] == list(range(1, 7))


@pytest.mark.slow
def test_lost_processes_are_started_again_and_change_nothing(tiny_dataset, tmp_path):
    """Either of two processes is killed at a random moment; all continue from the last checkpoint."""
    out, moments, settings = tmp_path / "out", random.Random(0), SETTINGS | {"epochs": 5}
    options = ("--cpus", "2", "--checkpoint-steps", "1", "--max-restarts", "2")
    process = start(command(tiny_dataset.root, out, *options, **settings))
    for number in range(2):
        after = steps_so_far(out) + moments.randrange(5, 20)
        while steps_so_far(out) < after and process.poll() is None:
            time.sleep(0.002)
        children = psutil.Process(process.pid).children()
        [child for child in children if "spawn_main" in "".join(child.cmdline())][number].kill()
    finish(process)
    whole = job_of(tiny_dataset.root, tmp_path / "whole", **settings)
    launch(Processes("cpu", 2, ""), run_job, whole)
    assert_same_run(whole.out, out)
