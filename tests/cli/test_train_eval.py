"""`alexnet-train` and `alexnet-eval` together: output files, agreement of metrics, and error messages."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cli.eval import main as evaluate
from cli.prep import main as prep
from cli.train import main as train
from pipeline import Dataset
from pipeline.dataset.manifest import write_manifest
from trainer.recipe import RECIPES

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


@pytest.mark.parametrize("views", ["center", "ten-crop"])
def test_evaluation_writes_what_it_prints(trained, tiny_dataset, tmp_path, views):
    out, _ = trained
    file = tmp_path / "result.json"
    result = invoke(evaluate, out, tiny_dataset.root, "--views", views, "--cpus", 1, "--json", file)
    assert result.exit_code == 0, result.output
    saved = json.loads(file.read_text())
    assert saved["views"] == views
    assert saved["metrics"]["samples"] == 30
    assert saved["metrics"]["largest_class"] == 0.1  # three of each of ten classes
    top1 = saved["metrics"]["top1"]
    assert f"accuracy {top1:7.2%}   error {1 - top1:7.2%}" in result.stdout


def test_evaluation_agrees_with_training(trained, tiny_dataset, tmp_path):
    out, _ = trained
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    file = tmp_path / "result.json"
    assert invoke(evaluate, out / "last.pt", tiny_dataset.root, "--cpus", 1, "--json", file).exit_code == 0
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics["top1"] == last["val_top1"]
    assert metrics["loss"] == pytest.approx(last["val_loss"], rel=1e-5)


def test_an_ensemble_of_one_network_twice_is_that_network(trained, tiny_dataset, tmp_path):
    out, _ = trained
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file, checkpoints in zip(files, ([out], [out, out / "best.pt"]), strict=True):
        result = invoke(evaluate, *checkpoints, tiny_dataset.root, "--cpus", 1, "--json", file)
        assert result.exit_code == 0, result.output
    one, two = (json.loads(file.read_text()) for file in files)
    assert len(two["checkpoints"]) == 2
    assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], rel=1e-6)


def test_kernels_are_drawn(trained, tiny_dataset, tmp_path):
    out, _ = trained
    result = invoke(evaluate, out, tiny_dataset.root, "--cpus", 1, "--kernels", tmp_path / "k.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "k.png") as image:
        assert image.format == "PNG"
        assert image.width >= 5 * 66  # two towers of five kernels of 11 px, six times magnified


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--gpus", "64"], ["--gpus 64 was asked for", "use --cpus 64"]),
        (["--gpus", "1", "--cpus", "1"], ["--gpus and --cpus were both given"]),
        (["--cpus", "0"], ["--cpus 0: give at least 1"]),
        (["--set", "bacth_size=3"], ["unknown key 'bacth_size'", "did you mean 'batch_size'"]),
        (["--set", "batch_size=many"], ["batch_size: expected int, got str"]),
        (["--set", "batch_size"], ["expected key=value"]),
        (["--set", "batch_size=0"], ["batch_size is 0"]),
        (["--set", "batch_size=33", "--cpus", "2"], ["does not divide among 2", "batch_size=34"]),
        (["--set", "batch_size=128", "--cpus", "1"], ["90 samples, fewer than one global batch of 128"]),
        (["--set", "crop=80", "--cpus", "1"], ["crop of 80 px", "72 px"]),
        (["--recipe", "paper", "--set", "crop=224", "--cpus", "1"], ["crop of 224 px", "--set crop=63"]),
        (["--set", "optimizer=adam"], ["--set: optimizer", "choose from 'paper', 'sgd', 'lars'"]),
        (["--recipe", "papper"], ["recipe 'papper': unknown", "paper"]),
        (["--recipe", "no.toml"], ["no such file"]),
        (["--bench", "--tensorboard"], ["--bench does not train, so --tensorboard would have no effect"]),
        (["--dry-run", "--steps", "3"], ["--dry-run does not train, so --steps would have no effect"]),
        (["--nodes", "2"], ["--nodes 2 needs --rendezvous HOST:PORT"]),
        (["--cpus", "1", "--cuda-graphs"], ["--cuda-graphs needs GPUs"]),
        (["--cpus", "2", "--grad-compression", "bf16"], ["bf16 needs GPUs and NCCL"]),
        (["--synthetic", "--overfit-batch"], ["--synthetic and --overfit-batch were both given"]),
        (
            ["--set", "batch_size=32", "--set", "accumulation_steps=5", "--cpus", "1"],
            ["accumulation_steps 5", "accumulation_steps=4"],
        ),
        (["--resume"], ["no run to resume"]),
    ],
)
def test_mistakes_exit_2_and_leave_nothing(tiny_dataset, tmp_path, arguments, fragments):
    out = tmp_path / "run"
    recipe = [] if "--recipe" in arguments else ["--recipe", "demo"]
    size = [] if any("crop" in a for a in arguments) else ["--set", "crop=64"]
    fails(invoke(train, tiny_dataset.root, *recipe, *size, *arguments, "--out", out), 2, *fragments)
    assert not out.exists() or not any(out.iterdir())


def test_resuming_needs_the_runs_folder(tiny_dataset):
    fails(invoke(train, tiny_dataset.root, "--resume"), 2, "--resume needs --out")


def test_a_forgotten_dataset_is_named(trained):
    fails(invoke(evaluate, trained[0]), 2, "found only", "dataset's folder last")


def test_the_help_names_every_recipe():
    text = CliRunner().invoke(train, ["--help"]).output
    assert all(recipe.stem in text for recipe in RECIPES.glob("*.toml"))


def test_data_that_is_none(tmp_path):
    fails(invoke(train, tmp_path / "no", "--recipe", "demo", "--cpus", 1), 2, "not a prepared dataset")


def test_data_without_validation(tiny_dataset, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train").symlink_to(tiny_dataset.root / "train")
    splits = {"train": tiny_dataset.manifest.splits["train"]}
    write_manifest(tmp_path / "d", dataclasses.replace(tiny_dataset.manifest, splits=splits))
    result = invoke(train, tmp_path / "d", *TINY, "--out", tmp_path / "run")
    fails(result, 2, "has no split 'val'", "--val-fraction")


def test_an_old_run_is_not_overwritten(trained, tiny_dataset):
    out, _ = trained
    fails(invoke(train, tiny_dataset.root, *TINY, "--out", out), 2, "already holds files", "--resume")


def test_checkpoints_that_do_not_fit(trained, tiny_dataset, tmp_path):
    out, _ = trained
    arguments = (tiny_dataset.root, "--cpus", 1)
    fails(invoke(evaluate, tmp_path / "no.pt", *arguments), 2, "no such run or checkpoint")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    fails(invoke(evaluate, tmp_path / "junk.pt", *arguments), 2, "not a readable checkpoint")
    (tmp_path / "empty").mkdir()
    fails(invoke(evaluate, tmp_path / "empty", *arguments), 2, "holds no checkpoint")
    content = torch.load(out / "best.pt", weights_only=True)
    torch.save(content | {"format": 7}, tmp_path / "new.pt")
    fails(invoke(evaluate, tmp_path / "new.pt", *arguments), 2, "checkpoint format 7")
    spec = content["spec"] | {"arch": "alexnet_source"}
    torch.save(content | {"spec": spec}, tmp_path / "arch.pt")
    fails(invoke(evaluate, tmp_path / "arch.pt", *arguments), 2, "weights do not fit")
    spec = content["spec"] | {"classes": content["spec"]["classes"][:9]}
    torch.save(content | {"spec": spec}, tmp_path / "classes.pt")
    fails(invoke(evaluate, tmp_path / "classes.pt", *arguments), 2)


def test_data_of_other_classes_or_size(trained, tiny_dataset, tmp_path):
    out, _ = trained
    manifest = tiny_dataset.manifest
    for name, changed, fragments in (
        (
            "classes",
            {"classes": manifest.classes[1:]},
            ["trained on 10 classes", "has 9", "only in the checkpoint"],
        ),
        ("size", {"image": dataclasses.replace(manifest.image, size=80)}, ["shorter side of 72 px"]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for split in ("train", "val"):
            (folder / split).symlink_to(tiny_dataset.root / split)
        write_manifest(folder, dataclasses.replace(manifest, **changed))
        assert Dataset.open(folder)
        fails(invoke(evaluate, out, folder, "--cpus", 1), 2, *fragments)


def test_an_unwritable_result_is_one_line(trained, tiny_dataset, tmp_path):
    out, _ = trained
    missing = tmp_path / "no" / "folder" / "r.json"
    fails(invoke(evaluate, out, tiny_dataset.root, "--cpus", 1, "--json", missing), 2, "does not exist")


def test_the_main_job_from_images_to_accuracy(tmp_path):
    """Draw, shard, train and evaluate a small image set."""
    assert invoke(prep, "demo", tmp_path / "p", "--images", 100).exit_code == 0
    assert invoke(prep, "shard", tmp_path / "p", tmp_path / "s", "--size", 72, "--workers", 1).exit_code == 0
    assert invoke(train, tmp_path / "s", *TINY, "--out", tmp_path / "r").exit_code == 0
    result = invoke(evaluate, tmp_path / "r", tmp_path / "s", "--cpus", 1)
    assert result.exit_code == 0
    assert "20 val images, 10 classes, center" in result.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_photographs_are_learnt(shared_data, tmp_path):
    """Short version of the README's run: after 12 epochs top-1 is twice the largest class's share."""
    assert invoke(prep, "shard", shared_data / "clothing", tmp_path / "s").exit_code == 0
    arguments = ("--recipe", "small", "--set", "epochs=12", "--cpus", 1, "--out", tmp_path / "r")
    result = invoke(train, tmp_path / "s", *arguments)
    assert result.exit_code == 0, result.output
    file = tmp_path / "result.json"
    assert invoke(evaluate, tmp_path / "r" / "last.pt", tmp_path / "s", "--json", file).exit_code == 0
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics["samples"] == 341
    assert metrics["largest_class"] == 81 / 341
    assert metrics["top1"] >= 2 * metrics["largest_class"]
