"""Validation within epochs, patience, and runs without validation."""

from dataclasses import replace

import pytest
from helpers.entries import Recorder
from helpers.training_runs import assert_same, assert_same_run, die_after, train_here

from pipeline.dataset.manifest import write_manifest
from trainer.callbacks.base import Callback
from trainer.distributed.env import DistEnv
from trainer.evaluation.evaluate import evaluate, evaluate_checkpoints
from trainer.runs import checkpoint, metrics_file
from trainer.runs.records import Validation
from trainer.training import trainer, validation
from trainer.training.options import Debugging, Saving, TrainJob
from trainer.training.step import train_step


@pytest.fixture
def job(tiny_recipe, tiny_dataset, tmp_path):
    """Two epochs of nine steps, with a validation after every second one."""
    recipe = replace(tiny_recipe, epochs=2, batch_size=10)
    return TrainJob(tiny_dataset.root, tmp_path / "run", recipe, validation=Validation(every_steps=2))


def score(monkeypatch, top1s):
    """Let validations find these top-1, in turn."""
    left = iter(top1s)
    monkeypatch.setattr(validation, "evaluate", lambda *a, **k: replace(evaluate(*a, **k), top1=next(left)))


def test_validations_within_epochs_are_rows_of_their_own_and_change_no_weights(job):
    recorder = train_here(job)
    rows = metrics_file.read_metrics(job.out)
    assert rows == recorder.rows
    steps = [2, 4, 6, 8, 9, 10, 12, 14, 16, 18]
    assert [row.steps for row in rows] == steps
    assert [row.kind == "epoch" for row in rows] == [step in (9, 18) for step in steps]
    assert [row.epochs_done for row in rows] == pytest.approx([step / 9 for step in steps])
    assert [row.epoch for row in rows] == [1] * 5 + [2] * 5
    assert all(row.train_seconds > 0 and row.val_seconds > 0 and row.val_loss > 0 for row in rows)
    plain = replace(job, out=job.out.parent / "plain", validation=Validation())
    ends = train_here(plain).rows
    for name in ("model", "optimizer", "ranks"):
        assert_same(*(checkpoint.load(folder / "last.pt")[name] for folder in (job.out, plain.out)))
    for field in ("train_loss", "val_loss", "val_top1"):
        found = [getattr(row, field) for row in rows if row.kind == "epoch"]
        assert found == [getattr(row, field) for row in ends]


@pytest.mark.parametrize(("every", "at"), [(1, 5), (1, 4), (3, 5), (3, 14)])
def test_a_run_that_died_between_two_validations_goes_on_as_one_never_stopped(job, monkeypatch, every, at):
    """At a learning rate of 1e-12 no validation is better than the first."""
    recipe = replace(job.recipe, arch="alexnet_owt", lr=1e-12)
    job = replace(job, recipe=recipe, validation=Validation(every_steps=2, patience=8))
    recorder = train_here(job)
    assert [row.steps for row in recorder.rows][-2:] == [14, 16]
    ((ending, line),) = recorder.endings
    assert ending == "finished"
    assert line.startswith("ended after update 16, ")
    top1 = recorder.rows[0].val_top1
    assert line.endswith(f"8 validations without a top-1 above {top1:.2%} (--patience)")
    cut = replace(job, out=job.out.parent / "cut", saving=Saving(steps=every))
    die_after(at, cut, monkeypatch)
    cut = replace(cut, resume="must")
    assert train_here(cut).endings[0][1].replace("cut", "run") == line
    assert_same_run(job.out, cut.out)
    again = train_here(cut)
    assert again.rows == []
    assert again.endings[0][1].replace("cut", "run") == line


def test_patience_counts_every_validation_and_best_and_plateau_the_ends_of_epochs(job, monkeypatch):
    """Epochs of two steps."""
    recipe = replace(job.recipe, batch_size=45, epochs=9, schedule="plateau", plateau_patience=1)
    job = replace(job, recipe=recipe, validation=Validation(every_steps=1, patience=4))
    score(monkeypatch, [0.2, 0.1, 0.9, 0.3, 0.3, 0.3, 0.8, 0.8])
    bests = []

    class Best(Callback):
        def on_epoch(self, row, epochs, best):
            bests.append((row.val_top1, best))

    recorder = Recorder()
    trainer.train(DistEnv(), job, [recorder, Best()])
    assert bests == [(0.1, True), (0.3, True), (0.3, False)]
    assert recorder.endings[0][1].endswith("4 validations without a top-1 above 90.00% (--patience)")
    saved = checkpoint.load(job.out / "last.pt")
    assert (saved["progress"]["steps"], saved["progress"]["best_top1"]) == (7, 0.3)
    assert saved["schedule"] == {"best_error": 0.7, "waited": 0, "drops": 1}
    assert metrics_file.best_epoch(recorder.rows).epoch == 2


def test_without_a_validation_split_the_last_checkpoint_is_the_best(job, tiny_dataset, tmp_path):
    """And so it is with --no-val, where the network ends with the same weights as a validated one."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "train").symlink_to(tiny_dataset.root / "train")
    (data / "mean_image.npy").symlink_to(tiny_dataset.root / "mean_image.npy")
    splits = {"train": tiny_dataset.manifest.splits["train"]}
    write_manifest(data, replace(tiny_dataset.manifest, splits=splits))
    plain = replace(job, validation=Validation(), out=tmp_path / "plain")
    train_here(plain)
    runs = {
        "as the data has no split 'val'": replace(plain, data=data, out=tmp_path / "a"),
        "by --no-val": replace(plain, validation=Validation(enabled=False), out=tmp_path / "b"),
    }
    for reason, run in runs.items():
        train_here(run, stop_after=1)
        recorder = train_here(replace(run, resume="must"))
        expected = f"none, {reason}: the last checkpoint counts as the best"
        assert recorder.facts["validation"] == expected
        rows = metrics_file.read_metrics(run.out)
        assert [(row.kind, row.steps, row.val_loss, row.val_top1, row.val_top5) for row in rows] == [
            ("epoch", steps, None, None, None) for steps in (9, 18)
        ]
        assert [row.val_seconds for row in rows] == [0, 0]
        assert not (run.out / "best.pt").exists()
        assert checkpoint.find(run.out) == run.out / "last.pt"
        models = [checkpoint.load(folder / "last.pt")["model"] for folder in (run.out, plain.out)]
        assert_same(*models)
    found = evaluate_checkpoints(DistEnv(), [tmp_path / "a"], tiny_dataset.root, "val", "center", 10)
    assert found.metrics.top1 == metrics_file.read_metrics(plain.out)[-1].val_top1


def test_a_run_whose_first_float16_steps_overflow_is_validated_without_their_loss(job, monkeypatch):
    monkeypatch.setattr(
        trainer,
        "train_step",
        lambda model, optimizer, images, *others: train_step(model, optimizer, images * 1e9, *others),
    )
    recipe = replace(job.recipe, precision="float16")
    job = replace(job, recipe=recipe, debugging=Debugging(steps=2))
    (row,) = train_here(job).rows
    assert (row.train_loss, row.train_top1, row.overflows) == (None, None, 2)
