"""`alexnet-eval`: its printed output, its output files, and its error messages."""

import csv
import json
import shutil
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.io import savemat

from cli.eval import main as evaluate
from pipeline import Dataset, Options, prepare, read_source
from pipeline.loader.views import ViewName
from pipeline.storage.atomic import write_bytes
from trainer import read_predictions
from trainer.models.alexnet import build_model
from trainer.models.classifier import new_classifier
from trainer.recipe import Recipe
from trainer.runs import checkpoint

pytestmark = pytest.mark.usefixtures("quick_workers")

RECIPE = Recipe(name="t", arch="alexnet_bn", epochs=1, lr=0.1, width=0.05, crop=64, compile=False)


def invoke(*arguments):
    return CliRunner().invoke(evaluate, [str(a) for a in arguments])


def fails(result, code, *fragments):
    """Assert the exit code, one error line that holds the fragments, and no traceback."""
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.output
    assert "Traceback" not in result.output
    for fragment in fragments:
        assert fragment in errors[0], errors[0]


def network(dataset, path):
    """Write a checkpoint for a dataset whose predictions differ between images."""
    torch.manual_seed(0)
    classifier = new_classifier(RECIPE, dataset)
    classifier.model.fc8.weight.data *= 100
    checkpoint.save(path, classifier)
    return path


@pytest.fixture(scope="module")
def model(tiny_dataset, tmp_path_factory):
    return network(tiny_dataset, tmp_path_factory.mktemp("network") / "net.pt")


@pytest.fixture(scope="module")
def everything(model, tiny_dataset, tmp_path_factory):
    """Output of an evaluation that writes all results, and the folder that they are in."""
    folder = tmp_path_factory.mktemp("everything")
    result = invoke(
        *(
            model,
            "--data",
            tiny_dataset.root,
            "--cpus",
            1,
            "--per-class",
            "--table",
            "--json",
            folder / "r.json",
        ),
        *("--predictions", folder / "p.csv", "--confusion", folder / "c.csv"),
    )
    assert result.exit_code == 0, result.output
    return result.stdout, folder


@pytest.fixture(scope="module")
def external(tmp_path_factory):
    """A plain state dict of ten classes, and a TOML file with its preprocessing."""
    folder = tmp_path_factory.mktemp("external")
    torch.manual_seed(1)
    torch.save({"state_dict": build_model("alexnet_owt", 10, 0.125).state_dict()}, folder / "net.pth")
    (folder / "how.toml").write_text(
        "mean = [123.7, 116.3, 103.5]\nstd = [58.4, 57.1, 57.4]\nsize = 72\ncrop = 64\n"
    )
    return folder / "net.pth", folder / "how.toml"


@pytest.fixture(scope="module")
def imagenets_names(tiny_source, tmp_path_factory):
    """Dataset of the tiny source's images, named like ImageNet: ten WNIDs, validation images 1 to 30."""
    source = tmp_path_factory.mktemp("names") / "source"
    number = 0
    for split in ("train", "val"):
        for number_of_class, folder in enumerate(sorted((tiny_source / split).iterdir())):
            wnid = f"n{number_of_class * 1234567 + 7:08d}"
            (source / split / wnid).mkdir(parents=True)
            for k, path in enumerate(sorted(folder.iterdir())):
                number += split == "val"
                stem = f"ILSVRC2012_val_{number:08d}" if split == "val" else f"{wnid}_{k}"
                shutil.copyfile(path, source / split / wnid / f"{stem}{path.suffix}")
    prepare(read_source(source), source.parent / "data", Options(size=72))
    return Dataset.open(source.parent / "data")


@pytest.fixture(scope="module")
def named_model(imagenets_names, tmp_path_factory):
    return network(imagenets_names, tmp_path_factory.mktemp("named") / "net.pt")


def write_meta(path, wnids):
    """Write a devkit's meta.mat that numbers the classes in reverse order."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    synsets = np.zeros((len(wnids), 1), dtype=[(field, object) for field in fields])
    for row, wnid in enumerate(wnids):
        synsets[row, 0] = (float(len(wnids) - row), wnid, "thing", 0.0)
    savemat(path, {"synsets": synsets})


def test_the_choice_of_views_is_the_loaders():
    option = next(p for p in evaluate.params if p.name == "views")
    assert set(option.type.choices) == set(get_args(ViewName))


def test_what_is_printed_is_what_is_written(everything, model, tiny_dataset):
    printed, folder = everything
    saved = json.loads((folder / "r.json").read_text())
    top1, (low, high) = saved["metrics"]["top1"], saved["metrics"]["top1_interval"]
    assert f"accuracy {top1:7.2%}   error {1 - top1:7.2%}" in printed
    assert f"95% interval of accuracy {100 * low:.2f}–{high:.2%}" in printed
    assert f"calibration error {saved['metrics']['ece']:.2%}" in printed
    assert f"| {model} | center | 30 |" in printed
    found = read_predictions(folder / "p.csv")
    hits = found.classes == found.labels[:, None]
    assert hits[:, 0].mean() == pytest.approx(top1)
    assert hits.any(axis=1).mean() == pytest.approx(saved["metrics"]["top5"])
    with (folder / "c.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == tiny_dataset.classes
    confusion = np.array([row[1:] for row in rows], int)
    assert confusion.trace() / confusion.sum() == pytest.approx(top1)
    assert all(info["id"] in printed for info in saved["per_class"])


@pytest.mark.parametrize("few", [20, 3])
def test_a_class_without_images_has_a_row(model, tiny_source, tiny_dataset, tmp_path, monkeypatch, few):
    monkeypatch.setattr("cli.common.results._FEW", few)
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    missing = tiny_dataset.classes[4]
    shutil.rmtree(source / "val" / missing)
    prepare(read_source(source), tmp_path / "data", Options(size=72))
    result = invoke(
        model, "--data", tmp_path / "data", "--cpus", 1, "--per-class", "--json", tmp_path / "r.json"
    )
    assert result.exit_code == 0, result.output
    assert "10 classes (1 without images, in no average)" in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if line.strip("│┃ ").startswith(f"{missing} ")]
    assert [cell.strip() for cell in row.split("│")[1:-1]][1:] == ["0", "–", "–", "–"]
    (saved,) = [c for c in json.loads((tmp_path / "r.json").read_text())["per_class"] if c["id"] == missing]
    assert (saved["samples"], saved["top1"], saved["top5"], saved["confused_share"]) == (0, None, None, None)


@pytest.mark.no_dali
def test_two_processes_write_what_one_does(everything, model, tiny_dataset, tmp_path):
    result = invoke(
        *(model, "--data", tiny_dataset.root, "--cpus", 2, "--batch-size", 4),
        *("--predictions", tmp_path / "p.csv", "--json", tmp_path / "r.json"),
    )
    assert result.exit_code == 0, result.output
    one, two = (read_predictions(folder / "p.csv") for folder in (everything[1], tmp_path))
    assert one.keys == two.keys
    assert np.array_equal(one.classes, two.classes)
    one, two = (json.loads((folder / "r.json").read_text()) for folder in (everything[1], tmp_path))
    assert one["per_class"] == two["per_class"]


def test_an_ensemble_with_an_external_checkpoint(model, tiny_dataset, external, tmp_path):
    file, how = external
    result = invoke(
        *(
            file,
            model,
            "--data",
            tiny_dataset.root,
            "--cpus",
            1,
            "--arch",
            "alexnet_owt",
            "--preprocessing",
            how,
        ),
        *("--ensemble-weights", "3,1", "--views", "full-resize"),
        *("--json", tmp_path / "r.json", "--kernels", tmp_path / "k.png"),
    )
    assert result.exit_code == 0, result.output
    assert "30 val images, 10 classes, full-resize" in result.stdout
    assert f"0.750 × {file}" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text())["ensemble_weights"] == [0.75, 0.25]
    assert "10 outputs are assumed to be the data's 10 classes" in result.stderr
    assert (tmp_path / "k.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def evaluation_set(tiny_source, tmp_path_factory):
    """The dataset of a `test` split alone, of three of the tiny source's classes and one of its own."""
    source = tmp_path_factory.mktemp("evaluation") / "source"
    names = sorted(folder.name for folder in (tiny_source / "val").iterdir())
    for name, own in zip(names[2:6], ("aardvark", *names[3:6]), strict=True):
        shutil.copytree(tiny_source / "val" / name, source / "test" / own)
    prepare(read_source(source), source.parent / "data", Options(size=72))
    return Dataset.open(source.parent / "data")


def test_a_dataset_for_evaluation_over_the_classes_that_it_shares(model, evaluation_set, tmp_path):
    files = ("--json", tmp_path / "r.json", "--confusion", tmp_path / "c.csv")
    options = ("--data", evaluation_set.root, "--cpus", 2, "--per-class", "--table")
    result = invoke(model, *options, *files, "--predictions", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    aardvark, *shared = evaluation_set.classes
    over = "over 3 shared classes, of the network's 10 and the data's 4, matched by id; "
    assert "9 test images, 3 classes" in result.stdout
    assert result.stdout.count(over) == 2
    assert aardvark not in result.stdout
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["shared_classes"] == {
        "shared": 3,
        "data": 4,
        "networks": [10],
        "by": ["id"],
        "images_left_out": 3,
    }
    assert [info["id"] for info in saved["per_class"]] == shared
    with (tmp_path / "c.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == shared == [row[0] for row in rows]
    found = read_predictions(tmp_path / "p.csv")
    assert (found.labels == found.classes[:, 0]).mean() == pytest.approx(saved["metrics"]["top1"])
    assert set(found.labels) == set(found.classes.ravel()) == {1, 2, 3}


def test_a_submission_needs_every_image(named_model, imagenets_names, tmp_path):
    """A network without one of the data's classes cannot make one."""
    fewer = replace(imagenets_names.manifest, classes=imagenets_names.manifest.classes[:-1])
    model = network(replace(imagenets_names, manifest=fewer), tmp_path / "net.pt")
    write_meta(tmp_path / "meta.mat", imagenets_names.classes)
    submission = ("--submission", tmp_path / "s.txt", "--devkit", tmp_path / "meta.mat")
    result = invoke(named_model, model, "--data", imagenets_names.root, "--cpus", 1, *submission)
    fails(result, 2, "lack 1 of its 10 classes, such as", "evaluate networks that have them all")


def test_labels_by_key(everything, model, tiny_dataset, tmp_path):
    found = read_predictions(everything[1] / "p.csv")
    labels = tmp_path / "l.csv"  # the second most probable classes of ten images, and an unknown key
    rows = [f"{key},{row[1]}" for key, row in zip(found.keys[:10], found.classes, strict=False)]
    labels.write_text("\n".join(["key,label", *rows, "nobody,0"]))
    result = invoke(
        model, "--data", tiny_dataset.root, "--cpus", 1, "--labels", labels, "--json", tmp_path / "r.json"
    )
    assert result.exit_code == 0, result.output
    assert "10 images; 20 have no label there; 1 of its keys are not in the data" in result.stdout
    score = json.loads((tmp_path / "r.json").read_text())["labels"][0]
    assert (score["top1"], score["top5"], score["samples"]) == (0.0, 1.0, 10)


def test_real_labels_and_a_submission(named_model, imagenets_names, tmp_path):
    lists = [[] for _ in range(50_000)]
    lists[0], lists[29] = [*range(10)], [*range(10)]
    (tmp_path / "real.json").write_text(json.dumps(lists))
    write_meta(tmp_path / "meta.mat", imagenets_names.classes)
    result = invoke(
        *(named_model, "--data", imagenets_names.root, "--cpus", 1, "--real-labels", tmp_path / "real.json"),
        *("--submission", tmp_path / "s.txt", "--devkit", tmp_path / "meta.mat"),
        *("--predictions", tmp_path / "p.parquet"),
    )
    assert result.exit_code == 0, result.output
    assert "real.json: 2 images; 28 have no label there" in result.stdout
    lines = (tmp_path / "s.txt").read_text().splitlines()
    found = read_predictions(tmp_path / "p.parquet")
    assert found.keys[0] == "ILSVRC2012_val_00000001"
    assert lines == [" ".join(str(10 - label) for label in row) for row in found.classes]


def test_mistakes_are_reported_before_the_work(
    model, named_model, tiny_dataset, imagenets_names, tmp_path, monkeypatch
):
    monkeypatch.setattr("trainer.distributed.launch.launch", lambda *_: pytest.fail("the evaluation started"))
    (tmp_path / "real.json").write_text("[[0]]")
    (tmp_path / "l.json").write_text('{"x": 1}')
    write_meta(tmp_path / "meta.mat", imagenets_names.classes[1:])
    submission = ("--submission", tmp_path / "s.txt")
    ours, named = (model, "--data", tiny_dataset.root), (named_model, "--data", imagenets_names.root)
    for arguments, fragments in (
        ((*ours, "--json", tmp_path / "no" / "r.json"), ["folder", "does not exist"]),
        ((*ours, "--confusion", "/proc/c.csv"), ["/proc/c.csv: cannot be written"]),
        ((*ours, "--predictions", tmp_path / "p.xlsx"), [".csv or .parquet"]),
        ((*ours, "--ensemble-weights", "1;2"), ["--ensemble-weights 1;2", "2,1,1"]),
        ((*ours, "--ensemble-weights", "1,2"), ["2 weights for 1 checkpoint"]),
        ((*named, "--real-labels", tmp_path / "real.json"), ["1 images, but ImageNet has 50,000"]),
        ((*ours, "--real-labels", tmp_path / "none.json"), ["no such file of labels"]),
        ((*ours, "--labels", tmp_path / "l.json"), ["labels none of the split's 30 images"]),
        ((*ours, *submission), ["--submission and --devkit go together"]),
        ((*ours, "--arch", "alexnet_owt"), ["--arch and --preprocessing go together"]),
        ((*ours, *submission, "--devkit", tmp_path / "no"), ["no development kit"]),
        ((*named, *submission, "--devkit", tmp_path / "meta.mat"), ["has no n00000007;"]),
        ((*ours, "--split", "test", "--labels", tmp_path / "l.json"), ["no split 'test'"]),
        ((model, "--data", imagenets_names.root, "--split", "test"), ["no split 'test'"]),
        ((*ours, "--cache-limit", "1G"), ["--cache-limit needs --cache"]),
    ):
        fails(invoke(*arguments), 2, *fragments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.json", "meta.mat", "real.json"]


def test_a_file_that_cannot_be_written_does_not_keep_others_back(model, tiny_dataset, tmp_path, monkeypatch):
    """A folder that vanishes during evaluation gives one error line and code 1; other files are written."""
    gone = tmp_path / "gone"
    gone.mkdir()
    original = write_bytes

    def writing(path, data):
        shutil.rmtree(gone, ignore_errors=True)
        original(path, data)

    monkeypatch.setattr("trainer.evaluation.results.write_bytes", writing)
    result = invoke(
        *(model, "--data", tiny_dataset.root, "--cpus", 1, "--json", gone / "r.json"),
        *("--confusion", tmp_path / "c.csv", "--predictions", tmp_path / "p.csv"),
    )
    fails(result, 1, f"cannot write {gone / 'r.json'}")
    assert "top-1" in result.stdout
    assert len(read_predictions(tmp_path / "p.csv")) == 30
    assert (tmp_path / "c.csv").is_file()
