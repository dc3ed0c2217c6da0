"""`alexnet-predict` and `alexnet-export`: output formats, error messages and exported files."""

import csv
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cli.export import main as export
from cli.predict import main as predict
from trainer.models.classifier import new_classifier
from trainer.recipe import load_recipe
from trainer.runs import checkpoint


def invoke(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tiny_dataset, tmp_path_factory):
    """A checkpoint of an untrained network for the tiny dataset."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "tiny.pt"
    checkpoint.save(path, new_classifier(load_recipe("demo", ["crop=64", "width=0.05"]), tiny_dataset))
    return path


@pytest.fixture(scope="module")
def table(model, tiny_source):
    """What `alexnet-predict` prints of the validation images."""
    result = invoke(predict, model, tiny_source / "val")
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def images(tiny_source):
    return tiny_source / "val"


@pytest.mark.no_dali
def test_a_table_has_a_line_for_each_guess_and_the_image_before_its_first(table, images):
    lines = table.splitlines()
    assert len(lines) == 5 * 30
    assert [line.split()[0] for line in lines[::5]] == [str(p) for p in sorted(images.rglob("*.jpg"))]
    columns = {line.index("%") for line in lines}
    assert len(columns) == 1
    assert all(line.lstrip()[0].isdigit() for k, line in enumerate(lines) if k % 5)
    shares = [float(line.split("%")[0].split()[-1]) for line in lines]
    assert all(a >= b for k, (a, b) in enumerate(pairwise(shares), 1) if k % 5)


def test_names_that_are_no_text_are_shown_with_escapes_and_kept_in_json(model, images, tmp_path):
    data = next(images.rglob("*.jpg")).read_bytes()
    odd = [os.fsencode(tmp_path) + name for name in (b"/caf\xe9.jpg", b"/two\nlines\x1b[31m.jpg")]
    for path in odd:
        Path(os.fsdecode(path)).write_bytes(data)
    files = [os.fsdecode(path) for path in odd]
    table = invoke(predict, model, *files, "--top", 1)
    assert table.exit_code == 0, table.output
    first, second = table.stdout.splitlines()
    assert "caf\\udce9.jpg" in first
    assert "two\\nlines\\x1b[31m.jpg" in second
    _, first, second = invoke(predict, model, *files, "--top", 1, "--format", "csv").stdout.splitlines()
    assert "two\\nlines\\x1b[31m.jpg" in second
    values = json.loads(invoke(predict, model, *files, "--format", "json").stdout)
    assert [os.fsencode(value["image"]) for value in values] == odd


def test_exif_rotates_an_image_only_on_request(model, images, tmp_path):
    """A rotated copy gets the upright image's predictions only where its EXIF orientation is applied."""
    upright = Image.open(next(images.rglob("*.jpg")))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)

    def predictions(*options):
        result = invoke(predict, model, tmp_path, "--format", "json", *options)
        return {Path(value["image"]).stem: value["guesses"] for value in json.loads(result.stdout)}

    heeded, ignored = predictions("--exif-rotate"), predictions()
    assert heeded["turned"] == heeded["upright"] == ignored["upright"]
    assert ignored["turned"] != ignored["upright"]


def test_predicting_needs_no_compiler(model, images, table, monkeypatch):
    for kind in (torch, torch.nn.Module):
        monkeypatch.setattr(kind, "compile", None)
    assert invoke(predict, model, images).stdout == table


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_predictions_that_cannot_be_printed_are_one_line(model, images, monkeypatch, capsys):
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            predict([str(model), str(images)])
    assert ended.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "No space left on device" in line


def test_a_diverged_network_is_an_error(model, images, tmp_path):
    content = torch.load(model, weights_only=True)
    content["model"]["model.fc8.bias"][0] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    result = invoke(predict, tmp_path / "nan.pt", images)
    assert result.exit_code == 1
    assert "outputs are not finite" in result.stderr
    assert result.stdout == ""


def test_json_and_csv_say_the_same(model, images, tmp_path):
    values = json.loads(invoke(predict, model, images, "--format", "json").stdout)
    out = tmp_path / "predictions.csv"
    assert invoke(predict, model, images, "--format", "csv", "--out", out).stdout == ""
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert len(rows) == 5 * len(values) == 150
    for row, guess in zip(rows, [guess for value in values for guess in value["guesses"]], strict=True):
        assert (row["id"], row["name"]) == (guess["id"], guess["name"])
        assert float(row["probability"]) == pytest.approx(guess["probability"], abs=1e-6)


def test_an_unreadable_image_is_named_and_the_rest_done(model, images, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no more")
    good = sorted(images.rglob("*.jpg"))[0]
    result = invoke(predict, model, bad, good, tmp_path / "none.png")
    assert result.exit_code == 1
    assert result.stdout.startswith(str(good))
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [("bad.jpg" in e, "none.png" in e) for e in errors] == [(True, False), (False, True)]
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (predict, ["no.pt", "x.jpg"], "no such run or checkpoint"),
        (predict, ["plain.pt", "x.jpg"], "not a checkpoint of this toolkit"),
        (predict, ["junk.onnx", "x.jpg"], "junk.onnx: not a readable checkpoint: neither a torch file"),
        (predict, ["net.pt", "empty"], "holds no images"),
        (predict, ["net.pt", "x.jpg", "--out", "none/x.csv"], "does not exist"),
        (predict, ["net.pt", "x.jpg", "--top", "0"], "not in the range"),
        (export, ["net.pt", "none/net.onnx"], "does not exist"),
        (export, ["net.pt", "net.h5"], "unknown format"),
    ],
)
def test_mistakes_exit_2_and_leave_nothing(model, tmp_path, monkeypatch, command, arguments, words):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(model, "net.pt")
    torch.save({"weight": torch.zeros(2)}, "plain.pt")
    Path("junk.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    Path("empty").mkdir()
    before = sorted(tmp_path.iterdir())
    result = invoke(command, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.no_dali
def test_an_exported_network_is_a_checkpoint_like_any_other(model, images, table, tmp_path):
    out = tmp_path / "net.safetensors"
    result = invoke(export, model, out)
    assert result.exit_code == 0, result.output
    assert f"{out}: " in result.stdout
    assert invoke(predict, out, images).stdout == table


def test_a_disk_that_takes_no_more_leaves_the_old_file(model, tmp_path):
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # Python ignores SIGXFSZ
    try:
        result = invoke(export, model, out, "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.exit_code == 1
    assert f"error: cannot write {out}: File too large" in result.stderr
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_onnx_from_the_command_line(model, tmp_path):
    """Runs in a subprocess, so that the log output of libraries is captured too."""
    code = "import sys; from cli.export import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "net.onnx")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'net.onnx'}: ")
    first, second = done.stderr.splitlines()
    assert first.startswith("note: takes pixels 0..255")
    assert second.startswith("note: ONNX Runtime agrees within")
