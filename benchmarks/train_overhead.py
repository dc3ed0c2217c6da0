"""What reports, metrics and checkpoints cost a run."""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import common

from cli.common.live import ConsoleCallback
from pipeline.host import keep_freed_memory
from trainer.callbacks.base import Callbacks
from trainer.distributed.env import DistEnv
from trainer.recipe import load_recipe
from trainer.runs.status import StatusCallback
from trainer.training.options import Debugging, Saving, TrainJob
from trainer.training.trainer import Trainer

_WAYS = ("off", "reports", "and a checkpoint")
_BLOCK = 10
"""Updates in a row with the same things switched on: the trainer reports once in as many."""

_BATCH = 16
_SKIPPED = 10
_TARGET = 0.02


def measure_overhead(rounds: int) -> int:
    """Time updates of the paper's network with all of it, with reports alone and with nothing; 1 if missed.

    A run switches every ten updates of 16 images: a machine's drift within minutes is larger than what
    is measured. Reports are the console, status.json, and the sums of losses and correct guesses. A
    checkpoint has 0.5 GB; the updates beside which it is written pay for it, and the share counts one in so
    many minutes as `alexnet-train` writes them by default.
    """
    blocks = len(_WAYS) * rounds
    steps = _SKIPPED + _BLOCK * blocks + 1
    images = (steps + 1) * _BATCH * 5 // 4  # a fifth of them is for validation
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _run("demo", str(work / "images"), "--images", str(images))
        _run("shard", str(work / "images"), str(work / "shards"))
        recipe = replace(load_recipe("paper"), batch_size=_BATCH, mean="channel", epochs=1)
        debugging = Debugging(synthetic=True, steps=steps)
        job = TrainJob(
            work / "shards", work / "run", recipe, saving=Saving(minutes=None), debugging=debugging
        )
        callbacks = Callbacks([ConsoleCallback(recipe.epochs), StatusCallback(job.out)])
        keep_freed_memory()
        trainer = _Switching(DistEnv(), job, callbacks)
        trainer.runs.run_folder()
    seconds = trainer.seconds(blocks)
    off, reports, saving = (seconds[way] for way in _WAYS)
    rows = [(way, f"{min(s):.4f}", f"{median(s):.4f}", f"{max(s):.4f}") for way, s in seconds.items()]
    print("\n" + common.markdown(("switched on", "s/update, least", "median", "most"), rows))
    of_reports = median(on / bare for on, bare in zip(reports, off, strict=True)) - 1
    # Of neighboring blocks, so that drift does not count.
    checkpoint = _BLOCK * median(on - less for on, less in zip(saving, reports, strict=True))
    minutes = Saving().minutes
    assert minutes is not None
    share = of_reports + checkpoint / (60 * minutes)
    judged = "met" if share < _TARGET else "MISSED"
    print(
        f"\nreports and metrics {of_reports:+.2%} of an update; a checkpoint {checkpoint:.2f} s, one in "
        f"{minutes:g} minutes {checkpoint / (60 * minutes):+.2%}; together {share:+.2%}, target < "
        f"{_TARGET:.0%}: {judged}"
    )
    return int(share >= _TARGET)


class _Switching(Trainer):
    """Switches reports, metrics and checkpoints on and off, and notes when each update begins."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._moments: list[float] = []
        self._add = self.meter.add
        self.meter.add = self._add_or_not  # type: ignore[method-assign]

    def seconds(self, blocks: int) -> dict[str, list[float]]:
        """Seconds of an update, of each block of each way."""
        borders = self._moments[_SKIPPED::_BLOCK][: blocks + 1]
        seconds = [(end - start) / _BLOCK for start, end in pairwise(borders)]
        return {way: seconds[number :: len(_WAYS)] for number, way in enumerate(_WAYS)}

    @property
    def _way(self) -> str:
        return _WAYS[max(len(self._moments) - 1 - _SKIPPED, 0) // _BLOCK % len(_WAYS)]

    def _update(self, step: int, batch: Any) -> None:
        number = len(self._moments) - _SKIPPED
        if number >= 0 and number % _BLOCK == 0:
            self.checkpointer.finish()  # what is still being written belongs to the block before
        self._moments.append(time.perf_counter())
        super()._update(step, batch)
        if number >= 0 and number % _BLOCK == 0 and self._way == _WAYS[2]:
            self._save()

    def _report(self, done: int) -> None:
        if self._way != _WAYS[0]:
            super()._report(done)

    def _add_or_not(self, *arguments: Any) -> None:
        if self._way != _WAYS[0]:
            self._add(*arguments)


def _run(*arguments: str) -> None:
    program = Path(sys.executable).with_name("alexnet-prep")
    subprocess.run([program, *arguments], check=True, capture_output=True)
