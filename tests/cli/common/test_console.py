"""What commands print: on full disks, without readers, with few characters, in few columns; hostile names."""

import dataclasses
import errno
import io
import os
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from helpers.inline import InlineExecutor

from cli.common.results import print_classes
from cli.eval import main as evaluate
from cli.prep import main as prep
from pipeline.dataset.manifest import write_manifest
from trainer.evaluation.evaluate import ClassMetrics
from trainer.models.classifier import new_classifier
from trainer.recipe import load_recipe
from trainer.runs import checkpoint

HOSTILE = "\x1b[2Jtench\r\u202e\n"


class Broken(io.StringIO):
    """A standard output that cannot be written."""

    def __init__(self, code):
        super().__init__()
        self.code = code

    def write(self, text):
        raise OSError(self.code, os.strerror(self.code))


class Terminal(io.StringIO):
    """A terminal's standard output."""

    def isatty(self):
        return True


@pytest.mark.parametrize("code", [errno.EPIPE, errno.ENOSPC])
@pytest.mark.parametrize("command", ["info", "info --json", "info --preview", "shard", "eval"])
def test_without_a_reader_or_space_the_work_is_done(
    tiny_dataset, tiny_source, tmp_path, monkeypatch, capsys, command, code
):
    monkeypatch.setattr("pipeline.LocalExecutor", lambda workers: InlineExecutor(), raising=False)
    monkeypatch.setattr("sys.stdout", Broken(code))
    out, model = tmp_path / "out", tmp_path / "net.pt"
    if command == "eval":
        checkpoint.save(model, new_classifier(load_recipe("demo", ["crop=64", "width=0.05"]), tiny_dataset))
    main, *arguments = {
        "info": (prep, "info", tiny_dataset.root),
        "info --json": (prep, "info", tiny_dataset.root, "--json"),
        "info --preview": (prep, "info", tiny_dataset.root, "--preview", out.with_suffix(".png")),
        "shard": (prep, "shard", tiny_source, out, "--size", 16),
        "eval": (
            evaluate,
            model,
            "--data",
            tiny_dataset.root,
            "--cpus",
            1,
            "--json",
            out.with_suffix(".json"),
        ),
    }[command]
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    writes = command in ("info --preview", "shard", "eval")
    assert ended.value.code == (1 if code == errno.ENOSPC else 0 if writes else 141)
    assert capsys.readouterr().err.count("error: ") == (code == errno.ENOSPC)
    assert len([path for path in tmp_path.iterdir() if path != model]) == writes
    assert command != "shard" or (out / "manifest.json").is_file()


@pytest.mark.parametrize("charset", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_shows_help_and_facts(tiny_dataset, charset):
    for command, arguments in ((evaluate, ["--help"]), (prep, ["info", str(tiny_dataset.root)])):
        result = CliRunner(charset=charset).invoke(command, arguments)
        assert result.exit_code == 0, result.output
        assert ("…" in result.stdout_bytes.decode(charset)) == (charset == "utf-8")


def test_hostile_names_reach_no_terminal(tiny_dataset, tmp_path, monkeypatch):
    classes = tuple(
        dataclasses.replace(info, name=f"{info.name}{HOSTILE}") for info in tiny_dataset.manifest.classes
    )
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(tiny_dataset.root / split)
    write_manifest(tmp_path, dataclasses.replace(tiny_dataset.manifest, classes=classes))
    described = CliRunner().invoke(prep, ["info", str(tmp_path)], color=True).output
    mistaken = CliRunner().invoke(prep, ["info", str(tmp_path / HOSTILE)], color=True).output
    monkeypatch.setattr("sys.stdout", table := io.StringIO())
    print_classes(classes_named(HOSTILE))
    for shown in (described, mistaken, table.getvalue()):
        assert "tench" in shown
        assert all(line.isprintable() for line in shown.split("\n"))


def classes_named(name):
    """Return an evaluation of three classes of this name."""
    shares = {"samples": 1_300, "top1": 1.0, "top5": 1.0, "confused_with": "n0", "confused_share": 0.125}
    classes = [ClassMetrics(**{"id": f"n{k}", "name": name} | shares) for k in range(3)]
    return SimpleNamespace(per_class=classes)


@pytest.mark.parametrize(("columns", "term"), [(40, "xterm"), (40, "dumb"), (120, "dumb")])
def test_a_table_of_long_names_fits_a_terminal(monkeypatch, columns, term):
    for name, value in {"COLUMNS": str(columns), "LINES": "30", "TERM": term}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    print_classes(classes_named("a very long name of a class " * 9))
    lines = terminal.getvalue().splitlines()
    assert ("\x1b" in terminal.getvalue()) == (term != "dumb")
    if term == "dumb":
        assert max(map(len, lines)) <= columns
    text = " ".join(lines)
    for part in ("class", "top-1", "top-5", "n0 a very", "100.0%"):
        assert part in text
    assert len(lines) <= 9  # one line for each class
