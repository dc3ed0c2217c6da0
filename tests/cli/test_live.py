"""The console of a training run: its view at every width, its log, its times; and `status`."""

import json
import time

import pytest
from click.testing import CliRunner
from rich.console import Console

from cli import live
from cli.live import ConsoleReporter, in_words, view
from cli.train import main as train
from trainer.reporting import StepRow

ROW = StepRow(
    epoch=3,
    done=120,
    total=250,
    steps=620,
    loss=2.345,
    top1=0.234,
    rate=0.0125,
    images_per_second=1234.0,
    data_wait=0.03,
    memory_mb=5120.0,
    seconds_left=754.0,
)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_view_shows_everything_at_any_width(width):
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(view(ROW))
    lines = capture.get().splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    text = " ".join(capture.get().split())
    for part in ("epoch 3", "120/250 updates", "images/s 1,234", "loss 2.345", "top-1 23.4%", "rate 0.013"):
        assert part in text
    for part in ("data wait 3%", "memory 5,120 MB", "left 13 min"):
        assert part in text


def test_a_log_without_terminal_shows_life_once_a_minute(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    with ConsoleReporter() as reporter:
        for _ in range(130):
            now[0] += 1.0
            reporter.step(ROW)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 3, 120/250 updates, images/s 1,234, loss 2.345")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (754, "13 min"),
        (5_940, "99 min"),
        (12_000, "3 h 20 min"),
        (364_000, "4 d 5 h"),
    ],
)
def test_times_are_in_words(seconds, text):
    assert in_words(seconds) == text


def invoke(*arguments):
    return CliRunner().invoke(train, [str(a) for a in arguments])


def test_status_shows_a_run(tiny_dataset, tmp_path):
    out = tmp_path / "run"
    sets = [
        part for text in ("crop=64", "width=0.1", "epochs=2", "batch_size=32") for part in ("--set", text)
    ]
    done = invoke(tiny_dataset.root, "--recipe", "demo", "--cpus", 1, *sets, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"finished 2 epochs: {out}" in done.stdout
    result = invoke("status", out)
    assert result.exit_code == 0, result.output
    for part in (
        "state       finished",
        "recipe      demo",
        "epoch 2, update 2 of 2 (4 in all)",
        "last.pt (",
    ):
        assert part in result.stdout
    found = json.loads(invoke("status", out, "--json").stdout)
    assert found["verdict"] == "finished"
    assert found["status"]["updated"] <= time.time()


def test_status_of_nothing_is_a_users_mistake(tmp_path):
    result = invoke("status", tmp_path)
    assert result.exit_code == 2
    assert "error: " in result.stderr
    assert "no run there; give the folder that alexnet-train named as --out" in result.stderr


def test_both_commands_explain_themselves():
    assert "alexnet-train status RUN" in invoke("--help").stdout
    assert "Usage: main status [OPTIONS] RUN" in invoke("status", "--help").stdout


def test_a_dry_run_prints_the_plan_and_writes_nothing(tiny_dataset, tmp_path):
    out = tmp_path / "run"
    sets = [
        part for text in ("crop=64", "width=0.1", "epochs=2", "batch_size=32") for part in ("--set", text)
    ]
    result = invoke(tiny_dataset.root, "--recipe", "demo", "--cpus", 2, *sets, "--out", out, "--dry-run")
    assert result.exit_code == 0, result.output
    for part in (
        "batch_size = 32",
        "steps      4: 2 an epoch",
        "2, each 16 pictures a step",
        "train 90, val 30",
    ):
        assert part in result.stdout
    assert not out.exists()
