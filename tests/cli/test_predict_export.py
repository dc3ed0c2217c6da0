"""`alexnet-predict` and `alexnet-export`: output formats, error messages and exported files."""

import csv
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cli.eval import main as evaluate
from cli.export import main as export
from cli.predict import main as predict
from trainer.models.classifier import new_classifier
from trainer.recipe import load_recipe
from trainer.runs import checkpoint


def invoke(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture
def tiny_checkpoint(tiny_dataset, tmp_path):
    """A checkpoint of an untrained network for the tiny dataset."""
    recipe = load_recipe("demo", ["crop=64", "width=0.05"])
    torch.manual_seed(0)
    path = tmp_path / "tiny.pt"
    checkpoint.save(path, new_classifier(recipe, tiny_dataset))
    return path


@pytest.fixture
def images(tiny_source):
    return tiny_source / "val"


def test_a_table_has_a_line_for_each_guess_and_the_image_before_its_first(tiny_checkpoint, images):
    result = invoke(predict, tiny_checkpoint, images, "--top", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 3 * 30
    assert [line.split()[0] for line in lines[::3]] == [str(p) for p in sorted(images.rglob("*.jpg"))]
    columns = {line.index("%") for line in lines}
    assert len(columns) == 1
    assert all(line.lstrip()[0].isdigit() for k, line in enumerate(lines) if k % 3)
    shares = [float(line.split("%")[0].split()[-1]) for line in lines]
    assert all(a >= b >= c for a, b, c in zip(shares[::3], shares[1::3], shares[2::3], strict=True))


def test_names_that_are_no_text_are_shown_with_escapes_and_kept_in_json(tiny_checkpoint, images, tmp_path):
    data = next(images.rglob("*.jpg")).read_bytes()
    odd = [os.fsencode(tmp_path) + name for name in (b"/caf\xe9.jpg", b"/two\nlines\x1b[31m.jpg")]
    for path in odd:
        Path(os.fsdecode(path)).write_bytes(data)
    files = [os.fsdecode(path) for path in odd]
    table = invoke(predict, tiny_checkpoint, *files, "--top", 1)
    assert table.exit_code == 0, table.output
    first, second = table.stdout.splitlines()
    assert "caf\\udce9.jpg" in first
    assert "two\\nlines\\x1b[31m.jpg" in second
    values = json.loads(invoke(predict, tiny_checkpoint, *files, "--format", "json").stdout)
    assert [os.fsencode(value["image"]) for value in values] == odd


def test_exif_rotates_an_image_only_on_request(tiny_checkpoint, images, tmp_path):
    """A rotated copy gets the upright image's predictions only where its EXIF orientation is applied."""
    upright = Image.open(next(images.rglob("*.jpg")))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)

    def predictions(*options):
        result = invoke(predict, tiny_checkpoint, tmp_path, "--format", "json", *options)
        return {Path(value["image"]).stem: value["guesses"] for value in json.loads(result.stdout)}

    heeded, ignored = predictions("--exif-rotate"), predictions()
    assert heeded["turned"] == heeded["upright"] == ignored["upright"]
    assert ignored["turned"] != ignored["upright"]


def test_predicting_needs_neither_dali_nor_a_compiler(tiny_checkpoint, images):
    code = (
        "import sys\n"
        "sys.modules['nvidia'] = sys.modules['nvidia.dali'] = None\n"
        "import torch\n"
        "def refuse(*_, **__): raise AssertionError('compiled')\n"
        "torch.compile = torch.nn.Module.compile = refuse\n"
        "from cli.predict import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, str(tiny_checkpoint), str(images)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == invoke(predict, tiny_checkpoint, images).stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_predictions_that_cannot_be_printed_are_one_line(tiny_checkpoint, images):
    code = f"from cli.predict import main; main({[str(tiny_checkpoint), str(images)]!r})"
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: No space left on device"]


def test_a_diverged_network_is_an_error(tiny_checkpoint, images):
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["model"]["model.fc8.bias"][0] = float("nan")
    torch.save(content, tiny_checkpoint)
    result = invoke(predict, tiny_checkpoint, images)
    assert result.exit_code == 1
    assert "outputs are not finite" in result.stderr
    assert result.stdout == ""


def test_json_and_csv_say_the_same(tiny_checkpoint, images, tmp_path):
    values = json.loads(invoke(predict, tiny_checkpoint, images, "--format", "json").stdout)
    out = tmp_path / "predictions.csv"
    assert invoke(predict, tiny_checkpoint, images, "--format", "csv", "--out", out).stdout == ""
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert len(rows) == 5 * len(values) == 150
    for row, guess in zip(rows, [guess for value in values for guess in value["guesses"]], strict=True):
        assert (row["id"], row["name"]) == (guess["id"], guess["name"])
        assert float(row["probability"]) == pytest.approx(guess["probability"], abs=1e-6)


def test_an_unreadable_image_is_named_and_the_rest_done(tiny_checkpoint, images, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no more")
    good = sorted(images.rglob("*.jpg"))[0]
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
        (["{run}/junk.onnx", "x.jpg"], "junk.onnx: not a readable checkpoint (not a torch file"),
        (["{run}/net.pt", "{run}/empty"], "holds no images"),
        (["{run}/net.pt", "x.jpg", "--out", "{run}/none/x.csv"], "does not exist"),
        (["{run}/net.pt", "x.jpg", "--top", "0"], "not in the range"),
    ],
)
def test_mistakes_exit_2(tiny_checkpoint, tmp_path, arguments, words):
    tiny_checkpoint.rename(tmp_path / "net.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "plain.pt")
    (tmp_path / "junk.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    (tmp_path / "empty").mkdir()
    result = invoke(predict, *(a.format(run=tmp_path) for a in arguments))
    assert result.exit_code == 2
    assert words in result.stderr


def test_an_exported_network_is_a_checkpoint_like_any_other(tiny_checkpoint, tiny_dataset, images, tmp_path):
    out = tmp_path / "net.safetensors"
    result = invoke(export, tiny_checkpoint, out)
    assert result.exit_code == 0, result.output
    assert f"{out}: " in result.stdout
    assert invoke(predict, out, images).stdout == invoke(predict, tiny_checkpoint, images).stdout
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for model, file in zip((tiny_checkpoint, out), files, strict=True):
        assert invoke(evaluate, model, tiny_dataset.root, "--cpus", 1, "--json", file).exit_code == 0
    a, b = (json.loads(file.read_text())["metrics"] for file in files)
    assert a == b


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_a_disk_that_takes_no_more_leaves_the_old_file(tiny_checkpoint, tmp_path, suffix):
    out = tmp_path / f"model.{suffix}"
    out.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # Python ignores SIGXFSZ
    try:
        result = invoke(export, tiny_checkpoint, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.exit_code == 1
    assert f"error: cannot write {out}: File too large" in result.stderr
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, tiny_checkpoint.name]


def test_an_onnx_file_with_other_outputs_is_not_written(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.export.TOLERANCE", -1.0)
    result = invoke(export, tiny_checkpoint, tmp_path / "net.onnx")
    assert result.exit_code == 1
    assert "not written" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [tiny_checkpoint.name]


def test_onnx_from_the_command_line(tiny_checkpoint, tmp_path):
    """Runs in a subprocess, so that the log output of libraries is captured too."""
    code = "import sys; from cli.export import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(tiny_checkpoint), str(tmp_path / "net.onnx")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'net.onnx'}: ")
    first, second = done.stderr.splitlines()
    assert first.startswith("note: takes pixels 0..255")
    assert second.startswith("note: ONNX Runtime agrees within")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.h5", "unknown format"),
        ("none/net.onnx", "does not exist"),
        ("net.pth", "alexnet_owt at width 1, this network is alexnet_bn"),
    ],
)
def test_what_cannot_be_exported_exits_2_and_leaves_nothing(tiny_checkpoint, tmp_path, name, words):
    result = invoke(export, tiny_checkpoint, tmp_path / name)
    assert result.exit_code == 2
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [tiny_checkpoint.name]
