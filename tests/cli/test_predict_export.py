"""`alexnet-predict` and `alexnet-export` as a user runs them."""

import csv
import io
import json

import pytest
import torch
from click.testing import CliRunner

from cli.eval import main as evaluate
from cli.export import main as export
from cli.predict import main as predict
from trainer import checkpoint
from trainer.classifier import new_classifier
from trainer.recipe import load_recipe


def invoke(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture
def tiny_checkpoint(tiny_dataset, tmp_path):
    """An untrained net of the tiny dataset."""
    recipe = load_recipe("demo", ["crop=64", "width=0.05"])
    torch.manual_seed(0)
    path = tmp_path / "tiny.pt"
    checkpoint.save(path, new_classifier(recipe, tiny_dataset))
    return path


@pytest.fixture
def pictures(tiny_source):
    return tiny_source / "val"


def test_a_table_has_a_line_for_each_picture(tiny_checkpoint, pictures):
    result = invoke(predict, tiny_checkpoint, pictures, "--top", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 30
    assert all("%" in line and line.count(",") == 1 for line in lines)


def test_json_and_csv_say_the_same(tiny_checkpoint, pictures, tmp_path):
    values = json.loads(invoke(predict, tiny_checkpoint, pictures, "--format", "json").stdout)
    out = tmp_path / "answers.csv"
    assert invoke(predict, tiny_checkpoint, pictures, "--format", "csv", "--out", out).stdout == ""
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert len(rows) == 5 * len(values) == 150
    for row, guess in zip(rows, [guess for value in values for guess in value["guesses"]], strict=True):
        assert (row["id"], row["name"]) == (guess["id"], guess["name"])
        assert float(row["probability"]) == pytest.approx(guess["probability"], abs=1e-6)


def test_an_unreadable_picture_is_named_and_the_rest_done(tiny_checkpoint, pictures, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no more")
    good = sorted(pictures.rglob("*.jpg"))[0]
    result = invoke(predict, tiny_checkpoint, bad, good, tmp_path / "none.png")
    assert result.exit_code == 1
    assert result.stdout.startswith(str(good))
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [("bad.jpg" in e, "none.png" in e) for e in errors] == [(True, False), (False, True)]
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}/no.pt", "x.jpg"], "no such run or checkpoint"),
        (["{run}/plain.pt", "x.jpg"], "not a checkpoint of this toolkit"),
        (["{run}/net.pt", "{run}/empty"], "holds no pictures"),
        (["{run}/net.pt", "x.jpg", "--out", "{run}/none/x.csv"], "does not exist"),
        (["{run}/net.pt", "x.jpg", "--top", "0"], "not in the range"),
    ],
)
def test_mistakes_exit_2(tiny_checkpoint, tmp_path, arguments, words):
    tiny_checkpoint.rename(tmp_path / "net.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "plain.pt")
    (tmp_path / "empty").mkdir()
    result = invoke(predict, *(a.format(run=tmp_path) for a in arguments))
    assert result.exit_code == 2
    assert words in result.stderr


def test_an_exported_net_is_a_checkpoint_like_any_other(tiny_checkpoint, tiny_dataset, pictures, tmp_path):
    out = tmp_path / "net.safetensors"
    result = invoke(export, tiny_checkpoint, out)
    assert result.exit_code == 0, result.output
    assert f"{out}: " in result.stdout
    assert invoke(predict, out, pictures).stdout == invoke(predict, tiny_checkpoint, pictures).stdout
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for net, file in zip((tiny_checkpoint, out), files, strict=True):
        assert invoke(evaluate, net, tiny_dataset.root, "--cpus", 1, "--json", file).exit_code == 0
    a, b = (json.loads(file.read_text())["metrics"] for file in files)
    assert a == b


def test_onnx_from_the_command_line(tiny_checkpoint, tmp_path):
    result = invoke(export, tiny_checkpoint, tmp_path / "net.onnx")
    assert result.exit_code == 0, result.output
    assert "ONNX Runtime agrees within" in result.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("net.h5", "no known format"),
        ("none/net.onnx", "does not exist"),
        ("net.pth", "alexnet_owt at width 1, this net is alexnet_bn"),
    ],
)
def test_what_cannot_be_exported_exits_2_and_leaves_nothing(tiny_checkpoint, tmp_path, name, words):
    result = invoke(export, tiny_checkpoint, tmp_path / name)
    assert result.exit_code == 2
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [tiny_checkpoint.name]
