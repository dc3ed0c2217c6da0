"""The run's folder: creation, checks when it is read, order of metrics."""

import json
from dataclasses import asdict, replace

import pytest

from pipeline.errors import UsageError
from pipeline.loader.stats import LoaderStats
from trainer.distributed.env import DistEnv
from trainer.recipe import load_recipe
from trainer.runs import checkpoint, metrics_file, run_folder
from trainer.runs.records import MetricsRow, Progress, Validation

VALIDATION = Validation(every_steps=7, patience=3)


def row(epoch: int, **values) -> MetricsRow:
    numbers = {
        "kind": "epoch",
        "epochs_done": epoch,
        "steps": epoch * 10,
        "lr": 0.1,
        "train_loss": 2.0,
        "train_top1": 0.1,
        "val_loss": 2.5,
        "val_top1": 0.2,
        "val_top5": 0.6,
        "train_seconds": 1.5,
        "val_seconds": 0.5,
        "images_per_second": 100.0,
        "loader": LoaderStats(10, 0.5, 1.5, None, wait=0.25, ready=None, under_way=3.0),
    }
    return MetricsRow(epoch=epoch, **(numbers | values))


def test_create_writes_the_recipe_and_what_it_runs_on(tmp_path, tiny_recipe, tiny_dataset):
    folder = tmp_path / "runs" / "tiny"
    run_folder.create(folder, tiny_recipe, tiny_dataset, VALIDATION, DistEnv(world_size=2))
    assert load_recipe(str(folder / "recipe.toml")) == tiny_recipe
    facts = json.loads((folder / "run.json").read_text())
    assert facts["dataset_sha256"] == tiny_dataset.fingerprint
    assert run_folder.read_validation(folder) == VALIDATION
    machine = facts["machine"]
    assert (facts["recipe"], machine["processes"], machine["device"]) == ("tiny", "2", "cpu")
    assert {"alexnet-toolkit", "torch", "numpy", "python", "torch threads", "processor"} <= set(machine)


def test_a_difference_of_machines_is_named():
    saved = {"machine": run_folder.machine(DistEnv()), "ranks": [{}]}
    assert run_folder.difference(saved, DistEnv()) == ""
    other = {**saved, "machine": saved["machine"] | {"torch": "1.0"}}
    assert run_folder.difference(other, DistEnv()).startswith(
        f"torch was 1.0, is {saved['machine']['torch']}: "
    )
    assert "order and augmentation" not in run_folder.difference(other, DistEnv())
    assert run_folder.same_processes(saved, DistEnv())
    assert not run_folder.same_processes(saved, DistEnv(world_size=2))
    assert not run_folder.same_processes(
        {**saved, "machine": saved["machine"] | {"device": "gpu"}}, DistEnv()
    )


def test_read_last_gives_what_was_saved_to_the_same_recipe_and_dataset(
    tmp_path, tiny_recipe, tiny_dataset, tiny_classifier
):
    with pytest.raises(UsageError, match="no run to resume"):
        run_folder.read_last(tmp_path, tiny_recipe, tiny_dataset, VALIDATION)
    run_folder.create(tmp_path, tiny_recipe, tiny_dataset, VALIDATION, DistEnv())
    nothing, note = run_folder.read_last(tmp_path, tiny_recipe, tiny_dataset, VALIDATION)
    assert nothing is None
    assert "stopped before its first checkpoint, starting again" in note
    state = {"recipe": tiny_recipe.to_toml(), "scaler": {}, "dataset": tiny_dataset.fingerprint}
    state["validation"] = asdict(VALIDATION)
    progress = Progress(epoch=2, steps=9, best_top1=0.5)
    checkpoint.save(tmp_path / "last.pt", tiny_classifier, **state, progress=asdict(progress))
    saved, note = run_folder.read_last(tmp_path, tiny_recipe, tiny_dataset, VALIDATION)
    assert (note, Progress(**saved["progress"])) == ("", progress)
    with pytest.raises(UsageError, match="another recipe"):
        run_folder.read_last(tmp_path, replace(tiny_recipe, lr=0.5), tiny_dataset, VALIDATION)
    with pytest.raises(UsageError, match="other --val-every-steps, --patience or --no-val; leave them out"):
        run_folder.read_last(tmp_path, tiny_recipe, tiny_dataset, replace(VALIDATION, patience=4))
    other = replace(tiny_dataset, manifest=replace(tiny_dataset.manifest, seed=99))
    with pytest.raises(UsageError, match="other data"):
        run_folder.read_last(tmp_path, tiny_recipe, other, VALIDATION)


def within(epoch: int, steps: int) -> MetricsRow:
    return row(epoch, kind="validation", epochs_done=steps / 10, steps=steps)


def test_metrics_are_appended_and_what_is_done_again_replaces_what_a_killed_run_left(tmp_path):
    assert metrics_file.read_metrics(tmp_path) == []
    rows = [within(1, 7), row(1), within(2, 14), row(2), within(3, 21)]
    for one in rows:
        metrics_file.add_metrics(tmp_path, one)
    assert metrics_file.read_metrics(tmp_path) == rows
    metrics_file.add_metrics(tmp_path, row(2, steps=14))  # cut short by other processes after the validation
    assert metrics_file.read_metrics(tmp_path) == [*rows[:3], row(2, steps=14)]
    metrics_file.add_metrics(tmp_path, within(2, 14))
    assert metrics_file.read_metrics(tmp_path) == rows[:3]


@pytest.mark.parametrize("content", [b"{", b'{"epoch": 1}\n', b"\xff\n", b'{"epoch": "one"}\n'])
def test_damaged_metrics_are_named(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=r"metrics\.jsonl: damaged"):
        metrics_file.read_metrics(tmp_path)
