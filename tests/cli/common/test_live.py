"""Console output of a training run: live view, epoch table, log lines, durations."""

import re
from dataclasses import replace

import pytest
from rich.console import Console

from cli.common import live
from cli.common.live import ConsoleCallback, EpochLines, view
from pipeline.loader.stats import LoaderStats
from trainer.runs.records import MetricsRow, StepMetrics, in_words

ROW = StepMetrics(
    epoch=3,
    done=120,
    total=250,
    steps=620,
    loss=2.345,
    top1=0.234,
    lr=0.0125,
    images_per_second=1234.0,
    data_wait=0.03,
    memory_mb=5120.0,
    gpu_rest_mb=1024.0,
    seconds_left=754.0,
)
EPOCH = MetricsRow(
    kind="epoch",
    epoch=3,
    epochs_done=3.0,
    steps=750,
    lr=0.0125,
    train_loss=2.345,
    train_top1=0.2345,
    val_loss=2.468,
    val_top1=0.3456,
    val_top5=0.6789,
    train_seconds=100.0,
    val_seconds=10.0,
    images_per_second=12_345.0,
    data_wait=0.03,
)


class Screen:
    """A terminal that understands what rich's live views write: text, cursor up, and erase line."""

    def __init__(self):
        self.lines, self.row = [""], 0

    def isatty(self):
        return True

    def flush(self):
        pass

    def write(self, text):
        for piece in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
            if piece == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif piece.endswith("A") and piece.startswith("\x1b"):
                self.row -= int(piece[2:-1])
            elif piece == "\x1b[2K":
                self.lines[self.row] = ""
            elif not piece.startswith(("\x1b", "\r")):
                self.lines[self.row] += piece
        return len(text)

    @property
    def text(self):
        return [line for line in self.lines if line]


def new_screen(monkeypatch):
    """Replace stdout and stderr by a terminal of 60 columns."""
    found = Screen()
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "60", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", found)
    monkeypatch.setattr("sys.stderr", found)
    return found


def test_views_come_and_go_and_lines_stay(monkeypatch):
    screen = new_screen(monkeypatch)
    with ConsoleCallback(90) as callback:
        callback.on_start({"recipe": "demo"})
        for epoch in (1, 2, 3):
            for done in (1, 120, 250):
                callback.on_step(replace(ROW, epoch=epoch, done=done))
            assert any(line.startswith(f"epoch {epoch}/90") for line in screen.text)
            if epoch == 2:
                callback.on_log("the disk is full")
            within = replace(EPOCH, kind="validation", epochs_done=epoch - 0.5)
            callback.on_validation(within, 90)
            callback.on_epoch(replace(EPOCH, epoch=epoch), 90, epoch == 3)
        callback.on_end("finished", "finished 90 epochs")
    assert [line.split()[0] for line in screen.text] == [
        *("recipe", "epoch", "0.50/90", "1/90", "note:", "1.50/90", "2/90", "2.50/90", "3/90", "finished"),
    ]
    assert all(len(line) <= 60 for line in screen.text)


def test_a_dumb_terminal_gets_the_lines_of_a_log(monkeypatch):
    screen = new_screen(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    now = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    with ConsoleCallback(90) as callback:
        now[0] += 61
        callback.on_step(ROW)
    assert [line.split(",")[0] for line in screen.text] == ["epoch 3/90"]


@pytest.mark.parametrize(
    ("width", "missing"),
    [(None, ""), (80, "wait"), (60, "wait lr images/s"), (1, "wait lr images/s train loss top-5")],
)
def test_epochs_lines_leave_out_what_a_narrow_terminal_has_no_room_for(width, missing):
    lines = EpochLines(width)
    names = ("lr", "train loss", "val loss", "top-5", "images/s", "wait")
    assert [name for name in names if name not in lines.head] == [n for n in names if n in missing]
    line = lines.line(EPOCH, 90, True)
    assert line.startswith("    3/90 ")
    assert " 2.468  34.56% " in line
    assert len(lines.head) == len(line.removesuffix("  best"))
    assert width in (None, 1) or len(line) <= width


@pytest.mark.parametrize(
    ("done", "at"), [(2.696, "2.70"), (12.5, "12.50"), (899.96, "899.9"), (1234.5, "1234")]
)
def test_a_validation_within_an_epoch_has_a_line_with_the_epochs_done_and_dashes_for_what_is_unknown(
    done, at
):
    lines = EpochLines(None)
    row = replace(EPOCH, kind="validation", epochs_done=done)
    assert lines.line(row, 9999, best=False).split()[0] == f"{at}/9999"
    unknown = dict.fromkeys(("train_loss", "train_top1", "val_loss", "val_top1", "val_top5"))
    line = lines.line(replace(row, **unknown), 9999, best=False)
    assert line.split().count("–") == 5
    assert len(line) == len(lines.head)


LOADER = LoaderStats(10, 0.1, 0.1, 0.1, wait=0.1, ready=0.31, under_way=2.7)


@pytest.mark.parametrize(
    ("waited", "loader", "said"),
    [
        (0.1, LOADER, "0.3 of 3 batches ready"),
        (0.1, replace(LOADER, decode=None, augment=None, ready=None), "waiting for DALI"),
        (0.09, LOADER, None),
        (0.1, replace(LOADER, ready=1.0), None),
        (0.9, replace(LOADER, batches=9), None),
        (0.9, None, None),
    ],
)
def test_a_run_that_waits_for_its_loader_is_input_bound(waited, loader, said):
    facts = dict(live.facts_of(replace(ROW, data_wait=waited, loader=loader)))
    assert facts.get("input-bound:") == said


def printed(row, width):
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(view(row, 90))
    return capture.get()


def test_an_epoch_whose_updates_are_over_is_being_validated():
    assert printed(replace(ROW, done=250), 80).splitlines()[0].rstrip().endswith("validating")


@pytest.mark.parametrize("width", [40, 120])
def test_a_view_shows_everything_at_any_width(width):
    text = printed(ROW, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for part in (
        *("epoch 3/90", "120/250 updates", "images/s 1,234", "loss 2.345", "top-1 23.4%", "lr 0.013"),
        *("data wait 3%", "memory 5,120 MB", "left 13 min"),
    ):
        assert part in " ".join(text.split())


def test_a_log_without_terminal_shows_life_once_a_minute(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    with ConsoleCallback(90) as callback:
        for _ in range(130):
            now[0] += 1.0
            callback.on_step(ROW)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 3/90, 120/250 updates, images/s 1,234, loss 2.345")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5_940, "99 min"),
        (12_000, "3 h 20 min"),
        (364_000, "4 d 5 h"),
    ],
)
def test_times_are_in_words(seconds, text):
    assert in_words(seconds) == text
