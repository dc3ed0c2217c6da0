"""What reports, metrics and checkpoints cost a run."""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import common

from cli.live import ConsoleReporter
from trainer.distributed import World
from trainer.job import Debugging, Job, Saving
from trainer.loop import Trainer
from trainer.recipe import load_recipe
from trainer.reporting import Reporter, Reporters
from trainer.status import StatusReporter

_STEPS = 60
_BATCH = 16
_SKIPPED = 10
_TARGET = 0.02


def measure_overhead(rounds: int) -> int:
    """Time updates of the paper's net with everything on and with nothing of it, in turns; 1 if missed.

    Everything is the console, status.json, the sums of losses and correct guesses, and a checkpoint (0.5 GB)
    within fifty updates of 16 pictures: half a minute here, where the default is one in 15 minutes.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _run("demo", str(work / "pictures"))
        _run("shard", str(work / "pictures"), str(work / "shards"))
        taken: dict[str, list[float]] = {"on": [], "off": []}
        for number in range(rounds + 1):
            for way, times in taken.items():
                seconds = _train(work / "shards", work / f"{way}-{number}", on=way == "on")
                if number:  # the first compiles
                    times.append(seconds)
    on, off = (median(taken[way]) for way in ("on", "off"))
    rows = [
        (way, ", ".join(f"{s:.4f}" for s in times), f"{median(times):.4f}") for way, times in taken.items()
    ]
    print("\n" + common.markdown(("reports, metrics, checkpoint", "s/update", "median"), rows))
    share = on / off - 1
    verdict = "met" if share < _TARGET else "MISSED"
    print(f"\ncost {share:+.1%} of an update, target < {_TARGET:.0%}: {verdict}")
    return int(share >= _TARGET)


def _train(data: Path, out: Path, *, on: bool) -> float:
    """Seconds of an update, but for the first few."""
    recipe = replace(load_recipe("paper"), batch_size=_BATCH, mean="channel", epochs=1)
    saving = Saving(steps=_STEPS // 2 if on else None, minutes=None)
    job = Job(data, out, recipe, saving=saving, debugging=Debugging(synthetic=True, steps=_STEPS))
    reporters: list[Reporter] = [ConsoleReporter(recipe.epochs), StatusReporter(out)] if on else []
    trainer = _Timed(World(), job, Reporters(reporters)) if on else _Bare(World(), job, Reporters([]))
    trainer.run()
    moments = trainer.moments[_SKIPPED:]
    return (moments[-1] - moments[0]) / (len(moments) - 1)


class _Timed(Trainer):
    """Notes when each update begins."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.moments: list[float] = []

    def _update(self, step: int, batch: Any) -> None:
        self.moments.append(time.perf_counter())
        super()._update(step, batch)


class _Bare(_Timed):
    """Reports and sums up nothing."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.meter.add = lambda *_: None  # type: ignore[method-assign]

    def _report(self, done: int) -> None:
        pass


def _run(*arguments: str) -> None:
    program = Path(sys.executable).with_name("alexnet-prep")
    subprocess.run([program, *arguments], check=True, capture_output=True)
