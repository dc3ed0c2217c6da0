"""Whole runs: their files, how they stop, and that a resumed run ends like one never stopped."""

import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.entries import run_job
from helpers.training_runs import (
    SETTINGS,
    assert_same,
    assert_same_run,
    command,
    finish,
    kill_when,
    start,
    train_here,
)

from pipeline.errors import RunError, UsageError
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch
from trainer.evaluation.evaluate import evaluate_checkpoints
from trainer.models.classifier import Classifier
from trainer.recipe import Stage, load_recipe
from trainer.runs import checkpoint, metrics_file
from trainer.training import trainer
from trainer.training.options import Saving, TrainJob
from trainer.training.setup import local_batch_size
from trainer.training.step import train_step


def test_a_run_leaves_recipe_metrics_and_checkpoints(tiny_recipe, tiny_dataset, tmp_path):
    recipe = replace(tiny_recipe, epochs=4, schedule="cosine", lr=0.01)
    recorder = train_here(TrainJob(tiny_dataset.root, tmp_path / "run", recipe))
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "recipe.toml",
        "run.json",
        "metrics.jsonl",
        "step-00000006.pt",
        "step-00000008.pt",
        "last.pt",
        "best.pt",
    }
    rows = metrics_file.read_metrics(folder)
    assert rows == recorder.rows
    assert [(row.epoch, row.steps) for row in rows] == [(1, 2), (2, 4), (3, 6), (4, 8)]  # 90 // 32 a time
    halves = (0.5, 1.5, 2.5, 3.5)  # where the second of two steps begins
    assert [row.lr for row in rows] == pytest.approx([0.005 * (1 + np.cos(np.pi * e / 4)) for e in halves])
    assert all(0 < row.val_loss < 50 and 0 <= row.train_top1 <= 1 for row in rows)
    best = max(rows, key=lambda row: row.val_top1)  # the first, where several are equal
    for name, row in (("last.pt", rows[-1]), ("best.pt", best)):
        metrics = evaluate_checkpoints(
            DistEnv(), [folder / name], tiny_dataset.root, "val", "center", 8
        ).metrics
        assert metrics.top1 == pytest.approx(row.val_top1)
        assert metrics.loss == pytest.approx(row.val_loss, rel=1e-4)
    assert "10 classes" in recorder.facts["data"]


def test_training_learns(tiny_recipe, tiny_dataset, tmp_path):
    recipe = replace(tiny_recipe, width=0.1, epochs=14, batch_size=30, lr=0.02, schedule="cosine")
    rows = train_here(TrainJob(tiny_dataset.root, tmp_path / "run", recipe)).rows
    assert rows[-1].train_loss < 0.8 * rows[0].train_loss
    assert max(row.val_top1 for row in rows) >= 0.3  # chance: 0.1


def test_runs_repeat_bit_for_bit_and_the_seed_matters(tiny_recipe, tiny_dataset, tmp_path):
    recipe = replace(tiny_recipe, epochs=2)
    for name in ("a", "b"):
        train_here(TrainJob(tiny_dataset.root, tmp_path / name, recipe))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    train_here(TrainJob(tiny_dataset.root, tmp_path / "c", replace(recipe, seed=1)))
    models = [checkpoint.load(tmp_path / name / "last.pt")["model"] for name in "ac"]
    assert not torch.equal(models[0]["model.conv1.weight"], models[1]["model.conv1.weight"])


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_bn"])
def test_a_stopped_run_goes_on_bit_for_bit_through_stages_and_plateaus(
    tiny_recipe, tiny_dataset, tmp_path, arch
):
    stages = (Stage(epoch=2, color_noise="none"), Stage(epoch=3, layer_lr_factors={"conv1": 0.0}))
    recipe = replace(
        tiny_recipe,
        arch=arch,
        epochs=5,
        schedule="plateau",
        plateau_patience=1,
        lr=0.002,
        color_noise="source",
        stages=stages,
    )
    job = TrainJob(tiny_dataset.root, tmp_path / "whole", recipe)
    train_here(job)
    cut = replace(job, out=tmp_path / "cut")
    train_here(cut, stop_after=1)
    for epoch in (2, 3):
        train_here(replace(cut, resume="must"), stop_after=epoch)
    train_here(replace(cut, resume="must"))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_dying_between_the_two_checkpoints_loses_neither(tiny_recipe, tiny_dataset, tmp_path, monkeypatch):
    whole = TrainJob(tiny_dataset.root, tmp_path / "whole", replace(tiny_recipe, epochs=2))
    train_here(whole)
    write, writes = checkpoint.write, []

    def dies_at_the_second(path, content):
        writes.append(path.name)
        if len(writes) == 2:
            raise KeyError("killed")
        write(path, content)

    cut = replace(whole, out=tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", dies_at_the_second)
        with pytest.raises(KeyError, match="killed"):
            train_here(cut)
    assert writes == ["best.pt", "step-00000002.pt"]
    train_here(replace(cut, resume="must"))
    assert_same_run(whole.out, cut.out)
    assert_same(
        checkpoint.load(whole.out / "best.pt")["model"], checkpoint.load(cut.out / "best.pt")["model"]
    )


def test_the_logged_learning_rate_is_the_one_used(tiny_recipe, tiny_dataset, tmp_path, monkeypatch):
    used: list[float] = []
    set_lrs = trainer.set_lrs
    monkeypatch.setattr(trainer, "set_lrs", lambda o, lr, stage: used.append(lr) or set_lrs(o, lr, stage))
    recipe = replace(tiny_recipe, epochs=4, schedule="plateau", plateau_patience=1, lr=1e-9)
    rows = train_here(TrainJob(tiny_dataset.root, tmp_path / "run", recipe)).rows
    steps = len(used) // 4
    assert [row.lr for row in rows] == used[steps - 1 :: steps]
    assert rows[-1].lr < rows[0].lr  # nothing is learned at 1e-9: the schedule found a plateau


def pretend_two_processes(folder: Path) -> None:
    """Change a run's checkpoint into one that two processes saved."""
    content = torch.load(folder / "last.pt", weights_only=True)
    content["ranks"][0]["loader"]["process"]["world"] = "2"
    content["ranks"] = content["ranks"] * 2
    content["machine"]["processes"] = "2"
    torch.save(content, folder / "last.pt")


def test_another_process_count_goes_on_with_the_next_epoch(tiny_recipe, tiny_dataset, tmp_path):
    stages = (Stage(epoch=3, color_noise="none"),)
    recipe = replace(tiny_recipe, epochs=4, color_noise="source", stages=stages)
    whole = TrainJob(tiny_dataset.root, tmp_path / "whole", recipe)
    train_here(whole, stop_after=1)
    pretend_two_processes(whole.out)
    cut = replace(whole, out=tmp_path / "cut", resume="must")
    shutil.copytree(whole.out, cut.out)
    notes = train_here(replace(whole, resume="must")).notes
    assert len(notes) == 1
    assert "processes was 2, is 1" in notes[0]
    assert "order and augmentation differ" in notes[0]
    for epoch in (2, 3):  # the color noise changes after the third epoch
        train_here(cut, stop_after=epoch)
    assert train_here(cut).notes == []
    assert_same_run(whole.out, cut.out)


def stopped_after(steps: int, job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a step fails as if the process had died."""
    done = []

    def dies(*arguments):
        if len(done) == steps:
            raise RunError("killed")
        done.append(1)
        return train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", dies)
        with pytest.raises(RunError, match="killed"):
            train_here(job)


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_stopped_after_any_update_goes_on_from_its_last_checkpoint(
    tiny_recipe, tiny_dataset, tmp_path, monkeypatch, every
):
    """Two epochs of four steps; checkpoints are written every `every` steps and at the ends of epochs."""
    recipe = replace(tiny_recipe, epochs=2, batch_size=22, schedule="cosine")
    whole = TrainJob(tiny_dataset.root, tmp_path / "whole", recipe)
    assert train_here(whole).rows[-1].steps == 8
    for at in range(every, 8):
        cut = replace(whole, out=tmp_path / f"cut-{at}", saving=Saving(steps=every))
        stopped_after(at, cut, monkeypatch)
        position = checkpoint.load(cut.out / "last.pt")["ranks"][0]["loader"]
        assert 4 * position["epoch"] + position["batch"] == max(at // every * every, at // 4 * 4)
        train_here(replace(cut, resume="must"))
        assert_same_run(whole.out, cut.out)


def test_other_processes_leave_out_the_rest_of_a_begun_epoch_and_say_so(
    tiny_recipe, tiny_dataset, tmp_path, monkeypatch
):
    recipe = replace(tiny_recipe, epochs=2, batch_size=22)
    job = TrainJob(tiny_dataset.root, tmp_path / "run", recipe, saving=Saving(steps=1))
    stopped_after(7, job, monkeypatch)
    pretend_two_processes(job.out)
    recorder = train_here(replace(job, resume="must"))
    begun = "epoch 2 was begun with another number or kind of processes"
    assert f"{begun}: its last 22 images are left out" in recorder.notes[1]
    assert recorder.losses == []
    (row,) = recorder.rows
    assert (row.epoch, row.steps, row.images_per_second) == (2, 7, 0)
    assert [row.epoch for row in metrics_file.read_metrics(job.out)] == [1, 2]
    assert np.isfinite(row.train_loss)


def test_one_processes_run_is_continued_by_two_with_a_note(tiny_recipe, tiny_dataset, tmp_path):
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=2))
    train_here(job, stop_after=1)
    (note,) = launch(Processes("cpu", 2, ""), run_job, replace(job, resume="must"))
    assert "processes was 1, is 2" in note
    assert [row.epoch for row in metrics_file.read_metrics(job.out)] == [1, 2]
    ranks = checkpoint.load(job.out / "last.pt")["ranks"]
    assert len(ranks) == 2
    assert not torch.equal(ranks[0]["rng"], ranks[1]["rng"])  # else both would drop the same units


def test_a_finished_run_resumed_does_nothing_more(tiny_recipe, tiny_dataset, tmp_path):
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=1))
    train_here(job)
    before = {path.name: path.read_bytes() for path in job.out.iterdir()}
    recorder = train_here(replace(job, resume="must"))
    assert (recorder.rows, recorder.losses, recorder.notes) == ([], [], [])
    assert {path.name: path.read_bytes() for path in job.out.iterdir()} == before


def test_another_recipe_or_dataset_is_not_resumed(tiny_recipe, tiny_dataset, tmp_path):
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=2))
    train_here(job, stop_after=1)
    before = (job.out / "last.pt").read_bytes()
    with pytest.raises(UsageError, match="another recipe"):
        train_here(replace(job, recipe=replace(job.recipe, lr=0.03), resume="must"))
    copy = tmp_path / "other"
    shutil.copytree(tiny_dataset.root, copy)
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(UsageError, match="other data"):
        train_here(replace(job, data=copy, resume="must"))
    assert (job.out / "last.pt").read_bytes() == before


def test_a_used_folder_is_refused_and_left_alone(tiny_recipe, tiny_dataset, tmp_path):
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=1))
    job.out.mkdir()
    (job.out / "thesis.tex").touch()
    with pytest.raises(UsageError, match="already holds files"):
        train_here(job)
    with pytest.raises(UsageError, match="no run to resume"):
        train_here(replace(job, resume="must"))
    assert [path.name for path in job.out.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (
            10,
            r"loss is no longer finite at update \d+, in epoch 2; .*last\.pt is of update 9: .* lr=0\.0005",
        ),
        # Two steps an epoch: the last loss may still be finite when the weights no longer are.
        (32, r"outputs on val are not finite.*diverged|(loss is|weights are) no longer finite .* epoch 2"),
    ],
)
def test_a_diverging_run_ends_and_spares_what_was_saved(tiny_recipe, tiny_dataset, tmp_path, batch, words):
    stages = (Stage(epoch=1, lr_factor=1e6),)
    recipe = replace(tiny_recipe, arch="alexnet_owt", lr=1e-3, batch_size=batch, stages=stages)
    job = TrainJob(tiny_dataset.root, tmp_path / "run", recipe)
    with pytest.raises(RunError, match=words):
        train_here(job)
    saved = checkpoint.load(job.out / "last.pt")
    assert saved["progress"]["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


@pytest.mark.parametrize(
    ("batch", "processes", "words"), [(32, 3, "use 2, or --set batch_size=33"), (7, 4, "use 1, ")]
)
def test_a_batch_that_does_not_divide_is_refused_with_remedies(tiny_recipe, batch, processes, words):
    with pytest.raises(
        UsageError, match=f"batch_size {batch} does not divide among {processes} processes; {words}"
    ):
        local_batch_size(replace(tiny_recipe, batch_size=batch), processes)


def test_one_image_a_process_is_too_few_for_batch_norm(tiny_recipe):
    with pytest.raises(UsageError, match="batch normalization needs two; use --set batch_size=64"):
        local_batch_size(tiny_recipe, 32)
    assert local_batch_size(replace(tiny_recipe, arch="alexnet"), 32) == 1


def test_local_batches_make_up_the_global_batch(tiny_recipe):
    assert [local_batch_size(tiny_recipe, n) * n for n in (1, 2, 4, 8, 16)] == [32] * 5


def test_impossible_settings_are_refused_before_anything_is_written(tiny_recipe, tiny_dataset, tmp_path):
    for change, words in (
        ({"batch_size": 91}, "90 samples, fewer than one global batch"),
        ({"crop": 73}, "crop of 73 px"),
        ({"stages": (Stage(epoch=0, layer_lr_factors={"conv9": 0.0}),)}, "conv9"),
    ):
        with pytest.raises(UsageError, match=words):
            train_here(TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, **change)))
        assert not (tmp_path / "run").exists()


def test_a_compiler_that_does_not_work_is_left_out_with_a_note(
    tiny_recipe, tiny_dataset, tmp_path, monkeypatch
):
    from torch._dynamo.exc import BackendCompilerFailed

    def no_compiler(self, *_args, **_keywords):
        def call(*_):
            raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler here"), None)

        self._compiled_call_impl = call

    monkeypatch.setattr(Classifier, "compile", no_compiler)
    job = TrainJob(tiny_dataset.root, tmp_path / "a", replace(tiny_recipe, epochs=1, compile=True))
    (note,) = train_here(job).notes
    assert "torch.compile does not work here" in note
    assert "no C++ compiler here" in note
    plain = replace(job, out=tmp_path / "b", recipe=replace(job.recipe, compile=False))
    train_here(plain)
    one, other = (checkpoint.load(folder / "last.pt") for folder in (job.out, plain.out))
    assert_same(one["model"], other["model"])


def test_channels_last_is_the_same_arithmetic_in_another_order(tiny_recipe, tiny_dataset, tmp_path):
    recipe = replace(tiny_recipe, epochs=1, std="channel")
    rows = [
        train_here(
            TrainJob(tiny_dataset.root, tmp_path / str(last), replace(recipe, channels_last=last))
        ).rows[0]
        for last in (False, True)
    ]
    assert rows[1].train_loss == pytest.approx(rows[0].train_loss, rel=1e-3)


def test_a_frozen_layer_stays_through_an_epoch_of_a_run(tiny_recipe, tiny_dataset, tmp_path):
    recipe = replace(
        tiny_recipe, epochs=2, stages=(Stage(epoch=1, layer_lr_factors={"conv1": 0.0, "bn1": 0.0}),)
    )
    job = TrainJob(tiny_dataset.root, tmp_path / "run", recipe)
    train_here(job, stop_after=1)
    before = checkpoint.load(job.out / "last.pt")["model"]
    train_here(replace(job, resume="must"))
    after = checkpoint.load(job.out / "last.pt")["model"]
    for layer in ("conv1", "bn1", "conv2"):
        assert torch.equal(before[f"model.{layer}.weight"], after[f"model.{layer}.weight"]) == (
            layer != "conv2"
        )


# From here on the real command runs in processes of its own, which are killed.

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_after_its_first_epoch_ends_as_one_never_stopped(tiny_dataset, tmp_path, processes):
    """With two processes, torchrun starts the uninterrupted run: it must do the same as --cpus 2."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    if processes == 1:
        finish(start(command(tiny_dataset.root, whole, "--cpus", "1", epochs=12)))
    else:
        script = tmp_path / "train.py"
        script.write_text("from cli.train import main\nmain()\n")
        finish(start(command(tiny_dataset.root, whole, epochs=12), (*TORCHRUN, str(script))))
    for _ in range(5):  # a busy machine may let the run end before it is killed
        shutil.rmtree(cut, ignore_errors=True)
        arguments = command(tiny_dataset.root, cut, "--cpus", str(processes), epochs=12)
        kill_when(start(arguments), cut / "last.pt")
        if checkpoint.load(cut / "last.pt")["progress"]["epoch"] < 12:
            break
    assert 1 <= checkpoint.load(cut / "last.pt")["progress"]["epoch"] < 12
    finish(start([str(tiny_dataset.root), "--out", str(cut), "--cpus", str(processes), "--resume"]))
    assert [row.epoch for row in metrics_file.read_metrics(cut)] == list(range(1, 13))
    assert_same_run(whole, cut)
    assert not list(cut.glob(".writing-*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_within_an_epoch_ends_as_one_never_stopped(tiny_dataset, tmp_path, processes):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"epochs": 6, "batch_size": 10}
    finish(start(command(tiny_dataset.root, whole, "--cpus", str(processes), **settings)))
    for _ in range(5):  # a busy machine may let the run end before it is killed
        shutil.rmtree(cut, ignore_errors=True)
        arguments = ("--cpus", str(processes), "--checkpoint-steps", "1")
        kill_when(start(command(tiny_dataset.root, cut, *arguments, **settings)), cut / "last.pt")
        if checkpoint.load(cut / "last.pt")["progress"]["epoch"] < 6:
            break
    position = checkpoint.load(cut / "last.pt")["ranks"][0]["loader"]
    assert (position["epoch"], position["batch"]) < (6, 0)
    finish(start([str(tiny_dataset.root), "--out", str(cut), "--cpus", str(processes), "--resume"]))
    assert_same_run(whole, cut)


@pytest.mark.slow
def test_three_processes_resume_bit_for_bit(tiny_dataset, tmp_path):
    """Three, because a sum of two numbers does not depend on the order of DDP's buckets."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"epochs": 4, "width": 0.5, "batch_size": 30}
    finish(start(command(tiny_dataset.root, whole, "--cpus", "3", **settings)))
    kill_when(start(command(tiny_dataset.root, cut, "--cpus", "3", **settings)), cut / "last.pt")
    assert checkpoint.load(cut / "last.pt")["progress"]["epoch"] < 4
    finish(start([str(tiny_dataset.root), "--out", str(cut), "--cpus", "3", "--resume"]))
    assert_same_run(whole, cut)


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        (signal.SIGINT, 130, "error: stopped; what was finished is kept"),
        (signal.SIGTERM, 75, "stopped by SIGTERM after update"),
    ],
)
def test_a_stopped_launcher_says_so_in_one_line(tiny_dataset, tmp_path, how, code, words):
    process = start(command(tiny_dataset.root, tmp_path / "run", "--cpus", "2", epochs=5000))
    while not (tmp_path / "run" / "last.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    # A terminal sends Ctrl-C to all processes, a scheduler SIGTERM to the first.
    os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert words in output
    assert "Traceback" not in output
    assert "death signal" not in output  # torch's own message


def test_a_run_killed_within_its_first_epoch_starts_again(tiny_dataset, tmp_path):
    out = tmp_path / "run"
    process = start(command(tiny_dataset.root, out, "--cpus", "1", epochs=50, batch_size=2, width=0.5))
    kill_when(process, out / "recipe.toml")
    assert not (out / "last.pt").exists()
    (out / ".writing-1-last.pt").write_bytes(b"half")  # left by a kill during a write
    recipe = load_recipe("demo", [f"{key}={value}" for key, value in (SETTINGS | {"epochs": 1}).items()])
    job = TrainJob(tiny_dataset.root, out, recipe, resume="must")
    assert "starting again" in train_here(job).notes[0]
    assert load_recipe(str(out / "recipe.toml")) == recipe
    fresh = replace(job, out=tmp_path / "fresh", resume=False)
    train_here(fresh)
    assert_same_run(out, fresh.out)
    assert not list(out.glob(".writing-*"))
