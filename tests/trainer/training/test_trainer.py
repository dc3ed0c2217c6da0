"""Whole runs: their files, how they stop, and that a resumed run ends like one never stopped."""

import itertools
import multiprocessing
import os
import shutil
import signal
import time
import weakref
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.entries import run_job
from helpers.training_runs import (
    assert_same,
    assert_same_run,
    command,
    die_after,
    job_of,
    start,
    train_here,
    train_until_killed,
)

from cli.train import main as train
from pipeline.dataset.manifest import ADOPTED
from pipeline.errors import RunError, UsageError
from pipeline.seeds import derive_seed
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch
from trainer.evaluation.evaluate import evaluate_checkpoints
from trainer.models.classifier import Classifier
from trainer.precision import choose_precision
from trainer.recipe import Stage, load_recipe
from trainer.runs import checkpoint, metrics_file
from trainer.runs.records import Validation
from trainer.training import messages, trainer
from trainer.training.options import Debugging, Saving, TrainJob
from trainer.training.setup import build_classifier
from trainer.training.step import train_step

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture(scope="module")
def whole(tiny_recipe, tiny_dataset, tmp_path_factory):
    """Job and recorder of a run of three epochs of two steps. Read-only."""
    recipe = replace(tiny_recipe, schedule="cosine", lr=0.01)
    job = TrainJob(tiny_dataset.root, tmp_path_factory.mktemp("whole") / "run", recipe)
    return job, train_here(job)


@pytest.mark.parametrize(("batch_size", "said"), [(40, "from 40 places instead of 5"), (512, None)])
def test_the_log_says_that_batches_of_adopted_tars_are_from_more_places(
    tiny_recipe, tiny_dataset, tmp_path, batch_size, said
):
    recipe, env = replace(tiny_recipe, batch_size=batch_size), DistEnv()
    source = replace(tiny_dataset.manifest.source, layout=ADOPTED)
    adopted = replace(tiny_dataset, manifest=replace(tiny_dataset.manifest, source=source))
    job, precision = TrainJob(tiny_dataset.root, tmp_path, recipe), choose_precision(recipe, "cpu")
    classifier = build_classifier(recipe, tiny_dataset, env)
    lines = [
        messages.facts(job, data, classifier, env, precision)["data"] for data in (tiny_dataset, adopted)
    ]
    assert "places" not in lines[0]
    assert said in lines[1] if said else lines[1] == lines[0]


def test_a_run_leaves_recipe_metrics_and_checkpoints(whole):
    job, recorder = whole
    assert {path.name for path in job.out.iterdir()} == {
        *("recipe.toml", "run.json", "metrics.jsonl", "best.pt", "last.pt"),
        *("step-00000004.pt", "step-00000006.pt"),
    }
    rows = metrics_file.read_metrics(job.out)
    assert rows == recorder.rows
    assert [(row.epoch, row.steps) for row in rows] == [(1, 2), (2, 4), (3, 6)]  # 90 // 32 a time
    halves = (0.5, 1.5, 2.5)  # where the second of two steps begins
    assert [row.lr for row in rows] == pytest.approx([0.005 * (1 + np.cos(np.pi * e / 3)) for e in halves])
    assert all(0 < row.val_loss < 50 and 0 <= row.train_top1 <= 1 for row in rows)
    best = max(rows, key=lambda row: row.val_top1)  # the first, where several are equal
    for name, row in (("last.pt", rows[-1]), ("best.pt", best)):
        metrics = evaluate_checkpoints(DistEnv(), [job.out / name], job.data, "val", "center", 8).metrics
        assert metrics.top1 == pytest.approx(row.val_top1)
        assert metrics.loss == pytest.approx(row.val_loss, rel=1e-4)
    assert "10 classes" in recorder.facts["data"]


def test_runs_repeat_bit_for_bit_and_the_seed_matters(whole, tmp_path):
    job, _ = whole
    again = replace(job, out=tmp_path / "again")
    train_here(again)
    assert_same_run(job.out, again.out)
    other = replace(job, out=tmp_path / "other", recipe=replace(job.recipe, seed=1))
    train_here(replace(other, debugging=Debugging(steps=1)))
    models = [checkpoint.load(folder / "last.pt")["model"] for folder in (job.out, other.out)]
    assert not torch.equal(models[0]["model.conv1.weight"], models[1]["model.conv1.weight"])


def test_a_stopped_run_goes_on_bit_for_bit_through_stages_and_plateaus(tiny_recipe, tiny_dataset, tmp_path):
    """The layer that the last stage freezes keeps its weights."""
    stages = (Stage(epoch=2, color_noise="none"), Stage(epoch=3, layer_lr_factors={"conv1": 0.0}))
    recipe = replace(
        tiny_recipe,
        arch="alexnet",
        epochs=4,
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
    assert_same_run(job.out, cut.out)
    before, after = (checkpoint.load(job.out / f"step-{n:08d}.pt")["model"] for n in (6, 8))
    for layer, frozen in (("conv1", True), ("conv2", False)):
        assert torch.equal(before[f"model.{layer}.weight"], after[f"model.{layer}.weight"]) == frozen


def test_dying_between_the_two_checkpoints_loses_neither(whole, tmp_path, monkeypatch):
    job, _ = whole
    write, writes = checkpoint.write, []

    def dies_at_the_second(path, content):
        writes.append(path.name)
        if len(writes) == 2:
            raise KeyError("killed")
        write(path, content)

    cut = replace(job, out=tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", dies_at_the_second)
        with pytest.raises(KeyError, match="killed"):
            train_here(cut)
    assert writes == ["best.pt", "step-00000002.pt"]
    train_here(replace(cut, resume="must"))
    assert_same_run(job.out, cut.out)
    assert_same(checkpoint.load(job.out / "best.pt")["model"], checkpoint.load(cut.out / "best.pt")["model"])


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
    content["ranks"] = content["ranks"] * 2
    content["machine"]["processes"] = "2"
    torch.save(content, folder / "last.pt")


@pytest.fixture(scope="module")
def four_steps(whole, tmp_path_factory):
    """Job of a run of two epochs of four steps. Read-only."""
    job, _ = whole
    recipe = replace(job.recipe, epochs=2, batch_size=22)
    job = replace(job, out=tmp_path_factory.mktemp("four") / "run", recipe=recipe)
    assert train_here(job).rows[-1].steps == 8
    return job


@pytest.mark.parametrize(("every", "at"), [(1, 3), (1, 4), (3, 5), (3, 7)])
def test_a_run_stopped_after_any_update_goes_on_from_its_last_checkpoint(
    four_steps, tmp_path, monkeypatch, every, at
):
    """Checkpoints are written every `every` steps and at the ends of epochs."""
    cut = replace(four_steps, out=tmp_path / "cut", saving=Saving(steps=every))
    die_after(at, cut, monkeypatch)
    position = checkpoint.load(cut.out / "last.pt")["data"]
    assert 4 * position["epoch"] + position["batch"] == max(at // every * every, at // 4 * 4)
    train_here(replace(cut, resume="must"))
    assert_same_run(four_steps.out, cut.out)


@pytest.fixture
def recorded_keys(monkeypatch):
    """Keys of the images of each update of this process."""
    keys, step = [], trainer.Trainer._step
    monkeypatch.setattr(
        trainer.Trainer, "_step", lambda self, t, n, batch: keys.append(batch.keys) or step(self, t, n, batch)
    )
    return keys


def test_other_processes_go_on_with_the_very_next_batch(four_steps, tmp_path, monkeypatch, recorded_keys):
    """Of eight updates five are made; then a checkpoint of two processes is continued by one."""
    train_here(replace(four_steps, out=tmp_path / "whole"))
    whole = recorded_keys.copy()
    job = replace(four_steps, out=tmp_path / "cut", saving=Saving(steps=1))
    recorded_keys.clear()
    die_after(5, job, monkeypatch)
    pretend_two_processes(job.out)
    (note,) = train_here(replace(job, resume="must")).notes
    assert "processes was 2, is 1" in note
    del recorded_keys[5]  # of the update that failed
    assert recorded_keys == whole
    assert [row.epoch for row in metrics_file.read_metrics(job.out)] == [1, 2]


def test_one_processes_run_is_continued_by_two_with_a_note(tiny_recipe, tiny_dataset, tmp_path):
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=2))
    train_here(job, stop_after=1)
    (note,) = launch(Processes("cpu", 2, ""), run_job, replace(job, resume="must"))
    assert "processes was 1, is 2: floating-point order may differ" in note
    assert [row.epoch for row in metrics_file.read_metrics(job.out)] == [1, 2]
    assert len(checkpoint.load(job.out / "last.pt")["ranks"]) == 2


def test_dropout_is_a_function_of_step_and_rank(tiny_recipe, tiny_dataset, tmp_path, monkeypatch):
    """No generator is saved, so each step and each process must have a seed of its own."""
    seeds = []
    monkeypatch.setattr(trainer.torch, "manual_seed", seeds.append)
    train_here(TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=2)))
    mine = [derive_seed(tiny_recipe.seed, "dropout", epoch, step, 0) for epoch in (0, 1) for step in (0, 1)]
    assert seeds[-4:] == mine
    assert len({*mine, derive_seed(tiny_recipe.seed, "dropout", 0, 0, 1)}) == 5


def test_a_run_resumed_at_its_end_does_nothing_more(whole, tmp_path):
    """The end is the last epoch, or the limit of --max-steps."""
    job, _ = whole
    for name, recipe, limit in (("all", job.recipe, None), ("limit", replace(job.recipe, epochs=9), 6)):
        copy = replace(job, out=shutil.copytree(job.out, tmp_path / name), recipe=recipe, resume="must")
        if limit:
            copy = replace(copy, debugging=Debugging(steps=limit))
            content = torch.load(copy.out / "last.pt", weights_only=True)
            torch.save(content | {"recipe": recipe.to_toml()}, copy.out / "last.pt")
        before = {path.name: path.read_bytes() for path in copy.out.iterdir()}
        recorder = train_here(copy)
        assert (recorder.rows, recorder.losses, recorder.notes) == ([], [], [])
        assert {path.name: path.read_bytes() for path in copy.out.iterdir()} == before


def test_a_diverging_run_ends_and_spares_what_was_saved(tiny_recipe, tiny_dataset, tmp_path):
    stages = (Stage(epoch=1, lr_factor=1e6),)
    recipe = replace(tiny_recipe, arch="alexnet_owt", lr=1e-3, batch_size=10, stages=stages)
    job = TrainJob(tiny_dataset.root, tmp_path / "run", recipe)
    words = r"loss is no longer finite at update \d+, in epoch 2; .*last\.pt is of update 9: .* lr=0\.0005"
    with pytest.raises(RunError, match=words):
        train_here(job)
    saved = checkpoint.load(job.out / "last.pt")
    assert saved["progress"]["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


def test_impossible_settings_are_refused_before_anything_is_written(tiny_recipe, tiny_dataset, tmp_path):
    with pytest.raises(UsageError, match="90 samples, fewer than one global batch"):
        train_here(TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, batch_size=91)))
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
    recipe = replace(tiny_recipe, compile=True)
    job = TrainJob(tiny_dataset.root, tmp_path / "a", recipe, debugging=Debugging(steps=1))
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


def test_a_run_that_died_within_its_first_epoch_starts_again(whole, tmp_path, monkeypatch):
    job, _ = whole
    cut = replace(job, out=tmp_path / "cut", recipe=replace(job.recipe, epochs=2))
    die_after(1, cut, monkeypatch)
    assert not (cut.out / "last.pt").exists()
    (cut.out / ".writing-1-last.pt").write_bytes(b"half")  # left by a kill during a write
    again = replace(job, out=cut.out, resume="must")
    assert "starting again" in train_here(again).notes[0]
    assert load_recipe(str(cut.out / "recipe.toml")) == job.recipe
    assert_same_run(job.out, cut.out)
    assert not list(cut.out.glob(".writing-*"))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.no_dali)])
def test_a_run_killed_within_an_epoch_ends_as_one_never_stopped(tiny_dataset, tmp_path, processes):
    """The command goes on with the killed run, which validates within epochs, without being told again."""
    count, dies_at = Processes("cpu", processes, ""), 7
    whole = job_of(tiny_dataset.root, tmp_path / "whole", epochs=2, batch_size=18)
    whole = replace(whole, validation=Validation(every_steps=2, patience=99))
    launch(count, run_job, whole)
    cut = replace(whole, out=tmp_path / "cut", saving=Saving(steps=1))
    if processes == 1:  # `launch` would train in this process
        arguments = (DistEnv(), cut, dies_at)
        process = multiprocessing.get_context("forkserver").Process(target=train_until_killed, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    else:
        with pytest.raises(RunError, match="was killed by signal 9"):
            launch(count, train_until_killed, cut, dies_at)
    assert checkpoint.load(cut.out / "last.pt")["progress"]["steps"] in (5, 6, 7)  # of five an epoch
    resume = [whole.data, "--out", str(cut.out), "--cpus", str(processes), "--resume"]
    assert CliRunner().invoke(train, resume).exit_code == 0
    assert [row.steps for row in metrics_file.read_metrics(cut.out)] == [2, 4, 5, 6, 8, 10]
    assert_same_run(whole.out, cut.out)
    assert not list(cut.out.glob(".writing-*"))


@pytest.mark.slow
def test_a_launcher_stopped_by_ctrl_c_says_so_in_one_line(tiny_dataset, tmp_path):
    process = start(command(tiny_dataset.root, tmp_path / "run", "--cpus", "2", epochs=5000))
    while not (tmp_path / "run" / "last.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to all processes
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"error: stopped; --out {tmp_path / 'run'} --resume continues from the last checkpoint" in output
    assert "Traceback" not in output
    assert "death signal" not in output  # torch's own message


def overflowing(monkeypatch: pytest.MonkeyPatch, steps: Collection[int], first: int = 0) -> None:
    """Let activations overflow float16 in these steps of the run, which begins after step `first`."""
    count = itertools.count(first + 1)

    def train_step_(model, optimizer, images, *others):
        return train_step(model, optimizer, images * (1e9 if next(count) in steps else 1.0), *others)

    monkeypatch.setattr(trainer, "train_step", train_step_)


def test_a_float16_step_that_overflows_is_left_out_and_counted_and_resuming_changes_nothing(
    tiny_recipe, tiny_dataset, tmp_path, monkeypatch
):
    recipe = replace(tiny_recipe, epochs=2, batch_size=22, precision="float16", ema_decay=0.9)
    whole = TrainJob(tiny_dataset.root, tmp_path / "whole", recipe)
    overflowing(monkeypatch, {1, 3})  # the first step has no loss to report before
    recorder = train_here(whole)
    assert [row.overflows for row in recorder.rows] == [2, 0]
    (note,) = recorder.notes
    assert "epoch 1: 2 updates left out, as float16 gradients overflowed" in note
    assert all(np.isfinite(row.loss) for row in recorder.steps)
    assert all(np.isfinite([row.train_loss, row.val_loss]).all() for row in recorder.rows)
    cut = replace(whole, out=tmp_path / "cut", debugging=Debugging(steps=3))
    overflowing(monkeypatch, {1, 3})
    train_here(cut)
    assert checkpoint.load(cut.out / "last.pt")["progress"]["overflows_in_a_row"] == 1
    overflowing(monkeypatch, {1, 3}, first=3)
    train_here(replace(cut, resume="must", debugging=Debugging()))
    assert_same_run(whole.out, cut.out)


@pytest.mark.parametrize(("most", "update"), [(3, 3), (50, 4)])
def test_a_run_whose_float16_steps_overflow_in_a_row_or_all_of_an_epoch_ends(
    tiny_recipe, tiny_dataset, tmp_path, monkeypatch, most, update
):
    monkeypatch.setattr(messages, "MOST_OVERFLOWS", most)
    overflowing(monkeypatch, range(99))
    recipe = replace(tiny_recipe, batch_size=22, precision="float16")
    words = (
        f"float16 gradients of {update} updates in a row are no longer finite at update {update}, in epoch 1"
    )
    with pytest.raises(RunError, match=words):
        train_here(TrainJob(tiny_dataset.root, tmp_path / "run", recipe))


def test_a_restored_checkpoint_is_freed_before_the_network_is_compiled(
    tiny_recipe, tiny_dataset, tmp_path, monkeypatch
):
    """But for the optimizer's state, which is used as it was read."""
    job = TrainJob(tiny_dataset.root, tmp_path / "run", replace(tiny_recipe, epochs=2, ema_decay=0.9))
    train_here(job, stop_after=1)
    read, alive = [], []
    load, step = checkpoint.load, trainer.run_throwaway_step

    def noted(*arguments):
        content = load(*arguments)
        read.extend(map(weakref.ref, (*content["model"].values(), *content["ema_weights"]["mean"].values())))
        return content

    def first_step(*arguments):
        alive.extend(tensor for tensor in read if tensor() is not None)
        step(*arguments)

    monkeypatch.setattr(checkpoint, "load", noted)
    monkeypatch.setattr(trainer, "run_throwaway_step", first_step)
    train_here(replace(job, resume="must"))
    assert read
    assert not alive


def test_a_gpu_out_of_memory_ends_a_run_with_one_line_on_what_to_lower(
    tiny_recipe, tiny_dataset, tmp_path, monkeypatch
):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(trainer, "train_step", short)
    job = TrainJob(tiny_dataset.root, tmp_path / "run", tiny_recipe)
    words = (
        "process 0: its GPU is out of memory with 32 images at a time; .* accumulation_steps=2, .*batch_size"
    )
    with pytest.raises(RunError, match=words):
        train_here(job)
