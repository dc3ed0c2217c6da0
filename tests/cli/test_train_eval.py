"""`alexnet-train` and `alexnet-eval` together: output files, agreement of metrics, and error messages."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner

from cli.eval import main as evaluate
from cli.plan import main as plan
from cli.prep import main as prep
from cli.show import main as show
from cli.train import main as train

TINY = [
    *("--recipe", "demo", "--cpus", "1", "--set", "crop=64", "--set", "width=0.1"),
    *("--set", "epochs=2", "--set", "batch_size=32"),
]


def invoke(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def fails(result, code, *fragments):
    """Assert the exit code, one error line that holds the fragments, and no traceback."""
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.output
    for fragment in fragments:
        assert fragment in errors[0]


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """Folder and command result of a run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = invoke(train, tiny_dataset.root, *TINY, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


def test_a_run_leaves_its_files_and_lines(trained):
    out, result = trained
    assert sorted(p.name for p in out.iterdir()) == [
        "best.pt",
        "last.pt",
        "metrics.jsonl",
        "recipe.toml",
        "run.json",
        "status.json",
        "step-00000002.pt",
        "step-00000004.pt",
    ]
    assert "training on 1 CPU process (--cpus)" in result.stderr
    assert "    2/2 " in result.stdout
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["steps"] for row in rows] == [2, 4]  # 90 images in batches of 32
    facts = json.loads((out / "run.json").read_text())
    assert facts["machine"]["processes"] == "1"
    assert facts["machine"]["torch"].startswith("2.")


def test_evaluation_writes_what_it_prints(trained, tiny_dataset, tmp_path):
    out, _ = trained
    file = tmp_path / "result.json"
    result = invoke(evaluate, out, "--views", "ten-crop", "--cpus", 1, "--json", file)
    assert result.exit_code == 0, result.output
    saved = json.loads(file.read_text())
    assert saved["views"] == "ten-crop"
    assert saved["metrics"]["samples"] == 30
    assert saved["metrics"]["largest_class"] == 0.1  # three of each of ten classes
    top1 = saved["metrics"]["top1"]
    assert f"accuracy {top1:7.2%}   error {1 - top1:7.2%}" in result.stdout


def test_evaluation_agrees_with_training(trained, tiny_dataset, tmp_path):
    out, _ = trained
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    file = tmp_path / "result.json"
    assert invoke(evaluate, out / "last.pt", "--cpus", 1, "--json", file).exit_code == 0
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics["top1"] == last["val_top1"]
    assert metrics["loss"] == pytest.approx(last["val_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--gpus", "64"], ["--gpus 64 was asked for", "use --cpus 64"]),
        (["--set", "bacth_size=3"], ["unknown key 'bacth_size'", "did you mean 'batch_size'"]),
        (["--set", "batch_size=33", "--cpus", "2"], ["does not divide among 2", "batch_size=34"]),
        (["--recipe", "papper"], ["recipe 'papper': unknown", "paper"]),
        (["--cpus", "1", "--decode-device", "gpu"], ["--decode-device gpu, but these are CPU processes"]),
        (["--cpus", "2", "--set", "grad_compression=bf16"], ["bf16 needs GPUs and NCCL"]),
        (["--synthetic", "--overfit-batch"], ["--synthetic and --overfit-batch were both given"]),
        (["--resume-required"], ["no run to resume"]),
    ],
)
def test_mistakes_exit_2_and_leave_nothing(tiny_dataset, tmp_path, arguments, fragments):
    out = tmp_path / "run"
    recipe = [] if "--recipe" in arguments else ["--recipe", "demo"]
    command = (tiny_dataset.root, *recipe, "--set", "crop=64", "--set", "batch_size=32", *arguments)
    fails(invoke(train, *command, "--out", out), 2, *fragments)
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize(
    ("command", "arguments", "fragments"),
    [
        (prep, ["shard"], ["source .: no images found"]),
        (prep, ["finish"], ["$ALEXNET_DATA is not set, and there is no dataset at shards"]),
        (prep, ["verify"], ["$ALEXNET_DATA is not set, and there is no dataset at shards"]),
        (prep, ["info"], ["$ALEXNET_DATA is not set, and there is no dataset at shards"]),
        (prep, ["stats"], ["$ALEXNET_DATA is not set, and there is no dataset at shards"]),
        (train, ["--cpus", "1"], ["$ALEXNET_DATA is not set, and there is no dataset at shards"]),
        (evaluate, [], ["none below runs has a checkpoint (last.pt or best.pt)"]),
    ],
)
def test_bare_commands_say_what_they_looked_for(tmp_path, monkeypatch, command, arguments, fragments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALEXNET_DATA", raising=False)
    fails(invoke(command, *arguments), 2, *fragments)
    assert not any(tmp_path.iterdir())


def test_the_variable_names_the_dataset(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALEXNET_DATA", str(tiny_dataset.root))
    assert f"dataset: {tiny_dataset.root} ($ALEXNET_DATA)" in invoke(prep, "info").stderr
    monkeypatch.setenv("ALEXNET_DATA", "gone")
    fails(invoke(prep, "info"), 2, "nothing is at gone, which $ALEXNET_DATA names")


def test_the_dataset_of_an_evaluation_is_that_of_its_runs(trained, tmp_path):
    out, _ = trained
    other = shutil.copytree(out, tmp_path / "other")
    facts = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(facts | {"dataset": str(tmp_path)}))
    fails(invoke(evaluate, out, other), 2, f"{other} on {tmp_path}; choose one with --data")
    (other / "run.json").write_text(json.dumps(facts | {"dataset": str(tmp_path / "gone")}))
    fails(invoke(evaluate, other), 2, "gone, which is not there; give its path with --data")
    (other / "run.json").unlink()
    fails(invoke(evaluate, other / "last.pt"), 2, "not in a run's folder; name its dataset with --data")
    fails(invoke(evaluate, out, facts["dataset"]), 2, f"give it as --data {facts['dataset']}")


def test_data_that_is_none(tmp_path):
    fails(invoke(train, tmp_path / "no", "--recipe", "demo", "--cpus", 1), 2, "not a prepared dataset")


def test_an_old_run_is_not_overwritten(trained, tiny_dataset):
    out, _ = trained
    fails(invoke(train, tiny_dataset.root, *TINY, "--out", out), 2, "already holds files", "--resume")


def test_status_shows_a_run(trained, tmp_path):
    out, _ = trained
    result = invoke(show, "status", out)
    assert result.exit_code == 0, result.output
    for part in ("state       finished", "epoch 2, update 2 of 2 (4 in all)", "last.pt (", "    2/2 "):
        assert part in result.stdout
    assert json.loads(invoke(show, "status", out, "--json").stdout)["health"] == "finished"
    fails(invoke(show, "status", tmp_path), 2, "no run there")


def test_a_run_without_validation_is_shown_evaluated_and_continued(tiny_dataset, tmp_path):
    out = tmp_path / "run"
    command = (tiny_dataset.root, *TINY, "--out", out)
    result = invoke(train, *command, "--no-val", "--max-steps", 3)
    assert result.exit_code == 0, result.output
    assert "none, by --no-val: the last checkpoint counts as the best" in result.stdout
    fails(invoke(train, *command, "--resume", "--patience", 2), 2, "leave them out")
    result = invoke(train, tiny_dataset.root, "--cpus", 1, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert "by --no-val" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("    2/2 ")]
    assert line.split().count("–") == 3
    assert not (out / "best.pt").exists()
    shown = invoke(show, "status", out).stdout
    assert line in shown
    assert "\nbest " not in shown
    result = invoke(evaluate, out, "--cpus", 1)
    assert result.exit_code == 0, result.output
    assert invoke(show, "curves", out, "-o", tmp_path / "curves.png").exit_code == 0


def test_the_plan_is_printed_and_nothing_written(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(plan, tiny_dataset.root, *TINY, "--cpus", 2)
    assert result.exit_code == 0, result.output
    for part in ("batch_size = 32", "4, 2 per epoch", "2, 16 images per step in each", "train 90, val 30"):
        assert part in result.stdout
    assert not any(tmp_path.iterdir())


def test_the_bare_commands_from_images_to_accuracy(tmp_path, monkeypatch):
    """In a folder of images: what is made there is not part of the source, and is what is used next."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALEXNET_DATA", raising=False)
    assert invoke(prep, "demo", ".", "--images", 100).exit_code == 0
    shard = ("shard", "--size", 72, "--workers", 1)
    result = invoke(prep, *shard)
    assert result.exit_code == 0, result.output
    assert f"source: the current folder, {tmp_path}; dataset: shards (by default)" in result.stderr
    result = invoke(train, *TINY)
    assert result.exit_code == 0, result.output
    assert "dataset: shards (by default)" in result.stderr
    assert invoke(train, *TINY, "--out", "runs/old").exit_code == 0
    for file in ("runs/old/last.pt", "runs/old/best.pt"):
        os.utime(file, (1, 1))
    (tmp_path / "runs" / "begun").mkdir()
    (tmp_path / "runs" / "begun" / "run.json").write_text("{}")
    result = invoke(evaluate, "--cpus", 1)
    assert result.exit_code == 0, result.output
    assert "run: runs/demo (the newest below runs)" in result.stderr
    assert f"dataset: {tmp_path / 'shards'} (" in result.stderr
    assert "20 val images, 10 classes, center" in result.stdout
    again = invoke(prep, *shard)
    assert "shards: was complete already" in again.stdout
    for command in ("verify", "info", "stats", "finish"):
        result = invoke(prep, command)
        assert result.exit_code == 0, result.output
        assert "dataset: shards (by default)" in result.stderr


@pytest.mark.slow
def test_real_photographs_are_learnt(shared_data, tmp_path):
    """A small version of the README's run: top-1 is well above the largest class's share after 12 epochs."""
    assert invoke(prep, "shard", shared_data / "clothing", tmp_path / "s", "--size", 128).exit_code == 0
    recipe = {"epochs": 12, "crop": 112, "width": 0.25, "warmup_epochs": 2, "compile": "false"}
    sets = [part for key, value in recipe.items() for part in ("--set", f"{key}={value}")]
    arguments = ("--recipe", "small", *sets, "--cpus", 1, "--out", tmp_path / "r")
    result = invoke(train, tmp_path / "s", *arguments)
    assert result.exit_code == 0, result.output
    file = tmp_path / "result.json"
    assert invoke(evaluate, tmp_path / "r" / "last.pt", "--json", file).exit_code == 0
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics["samples"] == 341
    assert metrics["largest_class"] == 81 / 341
    assert metrics["top1"] >= 1.5 * metrics["largest_class"]
