"""`alexnet-show`: every figure, the report, and error messages."""

import json
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
from click.testing import CliRunner
from PIL import Image

from cli.show import main
from pipeline import Options, prepare, read_source


def show(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def fails(result, code, *fragments):
    """Assert the exit code, one error line that holds the fragments, and no traceback."""
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.output
    for fragment in fragments:
        assert fragment in errors[0]


@pytest.fixture
def key(tiny_dataset):
    return tiny_dataset.samples("val").stored([0])[0].key


@pytest.fixture
def moved(tiny_run, tmp_path):
    """Copy of the run whose dataset no longer exists."""
    folder = tmp_path / "moved"
    shutil.copytree(tiny_run, folder)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"dataset": "/gone/away"}))
    return folder


FIGURES = {
    "kernels": ("svg",),
    "predictions": ("png", "--count", 3),
    "neighbors": ("svg", "--queries", 2, "--count", 3),
    "curves": ("png", "RUN"),
    "confusion": ("png",),
    "maps": ("svg", "KEY", "--layer", "conv2", "--layer", "pool5", "--channels", 4),
    "saliency": ("png", "KEY", "--class", "star"),
}


@pytest.mark.no_dali
@pytest.mark.parametrize("command", FIGURES)
def test_every_figure_is_written(tiny_run, key, tmp_path, command):
    suffix, *arguments = FIGURES[command]
    out = tmp_path / f"figure.{suffix}"
    known = {"KEY": key, "RUN": tiny_run}
    result = show(command, tiny_run, *[known.get(a, a) for a in arguments], "--out", out)
    assert result.exit_code == 0, result.output
    first, *lines = result.stdout.splitlines()
    assert first == str(out)
    assert len(lines) == {"predictions": 3, "neighbors": 2, "confusion": 5}.get(command, 0)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    if suffix == "svg":
        assert ElementTree.parse(out).getroot().tag.endswith("svg")
    else:
        with Image.open(out) as image:
            assert image.format == "PNG"
            assert image.width >= 300


def test_the_file_has_the_commands_name_by_default(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert show("kernels", tiny_run / "last.pt").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.png"]


def test_a_dataset_with_other_classes_is_drawn_over_the_shared_ones(tiny_run, tiny_source, tmp_path):
    for split, name, renamed in (("val", "star", "Star"), ("val", "ring", "Ring"), ("train", "star", "gnu")):
        shutil.copytree(tiny_source / split / name, tmp_path / "source" / "test" / renamed)
    prepare(read_source(tmp_path / "source"), tmp_path / "data", Options(size=72))
    data = ("--data", tmp_path / "data", "--out", tmp_path / "f.png")
    result = show("confusion", tiny_run, *data)
    assert result.exit_code == 0, result.output
    assert "over 2 shared classes, of the network's 10 and the data's 3, matched by name" in result.stderr
    assert all(
        set(line.split(":")[0].split()) <= {"Star", "Ring", "predicted", "as"}
        for line in result.stdout.splitlines()[1:]
    )
    fails(show("predictions", tiny_run, *data, "--force"), 2, "lacks 1 of the 3 classes", "gnu")
    shutil.rmtree(tmp_path / "source" / "test" / "gnu")
    prepare(read_source(tmp_path / "source"), tmp_path / "data", Options(size=72), force=True)
    result = show("predictions", tiny_run, *data, "--force", "--count", 3)
    assert result.exit_code == 0, result.output
    assert {line.split(": ")[1].split()[0] for line in result.stdout.splitlines()[1:]} <= {"Star", "Ring"}
    fails(show("predictions", tiny_run, *data, "--force", "--classes-by", "order"), 2, "needs equal numbers")


def test_predictions_are_printed_and_only_errors_are_errors(tiny_run, tmp_path):
    result = show("predictions", tiny_run, "--count", 2, "--only-errors", "--out", tmp_path / "p.png")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()[1:]
    assert lines
    for line in lines:
        head, _, tail = line.partition(": ")
        label = head.partition("(")[2].rstrip(")")
        assert tail.split()[0] != label


def test_neighbors_of_keys_and_of_files(tiny_run, tiny_source, key, tmp_path):
    file = next(tiny_source.rglob("*.jpg"))
    result = show("neighbors", tiny_run, key, file, "--count", 2, "--out", tmp_path / "n.png")
    assert result.exit_code == 0
    one, two = result.stdout.splitlines()[1:]
    assert one.startswith(f"{key}: ")
    assert two.startswith(f"{file.name}: ")
    assert one.count(",") == 1


def test_a_file_needs_no_dataset(moved, tiny_source, tmp_path):
    file = next(tiny_source.rglob("*.jpg"))
    for command, *options in (("maps", "--layer", "conv1"), ("saliency",)):
        assert show(command, moved, file, *options, "--out", tmp_path / f"{command}.png").exit_code == 0


def test_a_moved_dataset_is_named(moved, tiny_dataset, key, tmp_path):
    out = ("--out", tmp_path / "f.png")
    for command, *arguments in (("predictions",), ("neighbors",), ("confusion",), ("maps", key)):
        fails(show(command, moved, *arguments, *out), 2, "its dataset was /gone/away", "--data")
    assert show("predictions", moved, "--count", 1, "--data", tiny_dataset.root, *out).exit_code == 0


def test_a_report_beside_the_run_without_its_dataset_says_what_is_left_out(moved):
    result = show("report", moved)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{moved / 'report.html'} (")
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: without ")]
    parts = [note.split()[2].rstrip(":") for note in notes]
    assert parts == ["predictions", "neighbors", "confusion", "data"]
    assert all("/gone/away" in note for note in notes)


@pytest.mark.parametrize("command", ["kernels", "predictions", "neighbors", "confusion", "report"])
def test_a_run_without_a_checkpoint(tmp_path, command):
    (tmp_path / "empty").mkdir()
    fails(show(command, tmp_path / "empty", "--out", tmp_path / "f.png"), 2, "holds no checkpoint")
    fails(show(command, tmp_path / "no", "--out", tmp_path / "f.png"), 2, "no such run or checkpoint")
    assert not (tmp_path / "f.png").exists()


def test_a_report_needs_a_runs_folder(tiny_run, tmp_path):
    out = ("--out", tmp_path / "r.html")
    (tmp_path / "copy").mkdir()
    shutil.copy(tiny_run / "best.pt", tmp_path / "copy")
    fails(show("report", tmp_path / "copy", *out), 2, "no run.json")
    fails(show("report", tiny_run / "best.pt", *out), 2, "name the run's folder")


@pytest.mark.parametrize("command", FIGURES)
def test_files_that_cannot_be_written_are_named_before_the_work(tmp_path, command):
    arguments = ["no-run", "KEY"] if "KEY" in FIGURES[command] else ["no-run"]
    missing = tmp_path / "no" / "f.png"
    fails(show(command, *arguments, "--out", missing), 2, "does not exist", "make it")
    fails(show(command, *arguments, "--out", tmp_path / "f.gif"), 2, "written as .png or .svg")


def test_an_unwritable_folder_is_one_line(tiny_run, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipeline.storage.atomic.os.fsync", refuse)  # root may write to any folder
    skip = [f"--skip={part}" for part in ("curves", "predictions", "neighbors", "confusion", "data")]
    for command, file, *options in (("kernels", "f.png"), ("report", "r.html", *skip)):
        made = show(command, tiny_run, *options, "--out", tmp_path / file)
        fails(made, 1, "cannot write", "Permission denied")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["maps", "RUN", "KEY", "--layer", "conv9"], ["no layer with maps is named 'conv9'", "conv1"]),
        (["maps", "RUN", "KEY", "--layer", "fc6"], ["no layer with maps is named 'fc6'"]),
        (["maps", "RUN", "nothing"], ["no image of val has the key 'nothing'"]),
        (["saliency", "RUN", "KEY", "--class", "sta"], ["no class 'sta'", "did you mean 'star'"]),
        (["saliency", "RUN", "JUNK"], ["cannot be read as an image"]),
        (["neighbors", "RUN", "JUNK"], ["cannot be read as an image"]),
        (["neighbors", "RUN", "--among", "test"], ["has no split 'test'"]),
        (["predictions", "RUN", "--split", "test"], ["has no split 'test'"]),
        (["confusion", "RUN", "--data", "/no"], ["not a prepared dataset"]),
        (["report", "RUN", "--data", "/no"], ["not a prepared dataset"]),
        (["report", "RUN", "--skip", "kernel"], ["--skip is 'kernel'", "did you mean 'kernels'"]),
        (["curves", "/no"], ["/no: no such run"]),
    ],
)
def test_mistakes_are_one_line(tiny_run, key, tmp_path, arguments, fragments):
    junk = tmp_path / "junk.jpg"
    junk.write_bytes(b"\xff\xd8\xff\xe0 no image")
    known = {"RUN": tiny_run, "KEY": key, "JUNK": junk}
    out = tmp_path / "f.png"
    fails(show(*[known.get(a, a) for a in arguments], "--out", out), 2, *fragments)
    assert not out.exists()


def test_no_errors_to_draw_is_an_error_of_its_own(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.inference.examples.Prediction.right", True)
    result = show("predictions", tiny_run, "--only-errors", "--out", tmp_path / "f.png")
    fails(result, 1, "all images of val are predicted right", "leave --only-errors out")
