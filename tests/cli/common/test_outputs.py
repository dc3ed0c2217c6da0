"""No command replaces a file that it did not make, or its own input; all output options are found here."""

import importlib
import pkgutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import cli
from cli.eval import main as evaluate
from cli.export import main as export
from cli.predict import main as predict
from cli.prep import main as prep
from cli.show import main as show
from cli.train import main as train
from trainer.models.classifier import new_classifier
from trainer.recipe import load_recipe
from trainer.runs import checkpoint

# Parameters that are paths and no output files: inputs and caches, and outputs that are folders.
INPUTS = {
    "run",
    "runs",
    "checkpoint",
    "checkpoints",
    "ensemble",
    "images",
    "real_labels",
    "labels_file",
    "devkit",
}
INPUTS |= {"scratch", "cache", "classes", "source", "data"}
FOLDERS = {"alexnet-train out", *(f"alexnet-prep {name} out" for name in prep.commands)}
FOREIGN = b"not ours"


def commands():
    """Yield the name and the command of every click command in the modules of `cli`."""
    for module in pkgutil.iter_modules(cli.__path__):
        for name, value in vars(importlib.import_module(f"cli.{module.name}")).items():
            if isinstance(value, click.Command) and value.callback.__module__ == f"cli.{module.name}":
                yield f"alexnet-{module.name}{'' if name == 'main' else f' {value.name}'}", value


OUTPUTS = {
    f"{name} {parameter.opts[-1]}": (command, parameter)
    for name, command in commands()
    for parameter in command.params
    if isinstance(parameter.type, click.Path)
    and parameter.name not in INPUTS
    and f"{name} {parameter.name}" not in FOLDERS
}


def invoke(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def with_output(command, output, file):
    """Return arguments of a command that name a file as an output, and inputs that do not exist."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    values = [file if argument is output else "nothing" for argument in arguments]
    return values if output in arguments else [*values, output.opts[-1], file]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_that_exists_is_refused_before_the_work(tmp_path, name):
    command, output = OUTPUTS[name]
    file = tmp_path / "out.png"
    file.write_bytes(FOREIGN)
    result = invoke(command, *with_output(command, output, file))
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert str(file) in line
    assert "--force" in line
    forced = invoke(command, *with_output(command, output, file), "--force")
    assert forced.exit_code == 2
    assert "--force" not in forced.stderr  # but something else is wrong
    assert file.read_bytes() == FOREIGN


def test_every_output_is_found():
    assert len(OUTPUTS) == 17
    spelled = {tuple(output.opts) for _, output in OUTPUTS.values() if "--out" in output.opts}
    assert spelled == {("-o", "--out")}


def test_default_names_are_outputs_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("kernels.png").write_bytes(FOREIGN)
    assert "--force" in invoke(show, "kernels", "nothing").stderr
    Path("kernels.png").rename("net.preprocessing.json")
    assert "--force" in invoke(export, "nothing", "net.pth").stderr


@pytest.fixture
def model(tiny_dataset, tmp_path):
    """A checkpoint of an untrained network for the tiny dataset."""
    path = tmp_path / "net.pt"
    checkpoint.save(path, new_classifier(load_recipe("demo", ["crop=64", "width=0.05"]), tiny_dataset))
    return path


def test_force_replaces_files(model, tiny_dataset, tiny_source, tmp_path):
    out = tmp_path / "out.png"
    image = next(tiny_source.rglob("*.jpg"))
    for command, *arguments in (
        (show, "kernels", model, "-o", out),
        (prep, "info", tiny_dataset.root, "--preview", out),
        (predict, model, image, "-o", out),
        (evaluate, model, "--data", tiny_dataset.root, "--cpus", 1, "--json", out),
    ):
        out.write_bytes(FOREIGN)
        result = invoke(command, *arguments, "--force")
        assert result.exit_code == 0, result.output
        assert out.read_bytes() != FOREIGN


def test_what_not_even_force_replaces(model, tiny_dataset, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("run.json", "best.pt"):
        (copy / name).write_bytes(FOREIGN)
    (tmp_path / "dead").symlink_to("gone")
    (tmp_path / "folder").mkdir()
    before = model.read_bytes()
    for name, reason in {
        model: "input",
        copy / "best.pt": "part of a run",
        tmp_path / "dead": "dead link to gone",
        tmp_path / "folder": "is a directory",
        "/dev/null": "no regular file",
    }.items():
        result = invoke(export, model, name, "--force")
        assert result.exit_code == 2
        assert reason in result.stderr
    assert (before, FOREIGN) == (model.read_bytes(), (copy / "best.pt").read_bytes())
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("command", ["shard", "demo", "train"])
def test_a_folder_that_is_a_dead_link_is_named_as_such(tiny_source, tiny_dataset, tmp_path, command):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone" / "folder")
    result = {
        "shard": lambda: invoke(prep, "shard", tiny_source, link),
        "demo": lambda: invoke(prep, "demo", link, "--images", 40),
        "train": lambda: invoke(
            train, tiny_dataset.root, "--recipe", "demo", "--set", "crop=64", "--cpus", 1, "-o", link / "run"
        ),
    }[command]()
    assert result.exit_code == 2
    assert f"error: {link}: is a dead link to {tmp_path / 'gone'}" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_one_file_for_two_outputs_is_refused(tmp_path):
    out = tmp_path / "out.csv"
    arguments = ("--confusion", out, "--predictions", tmp_path / "." / "x" / ".." / "out.csv")
    (tmp_path / "x").mkdir()
    result = invoke(evaluate, "nothing", "--data", "nothing", *arguments)
    assert result.exit_code == 2
    assert "two outputs" in result.stderr
