"""Measure how much time reports, metrics and checkpoints cost a training run."""

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
from trainer.callbacks.status import StatusCallback
from trainer.distributed.env import DistEnv
from trainer.distributed.failures import HangWatchdog
from trainer.recipe import load_recipe
from trainer.training.options import Debugging, Saving, TrainJob
from trainer.training.trainer import Trainer

_WAYS = ("off", "reports", "and a checkpoint")
_BLOCK = 10
"""Consecutive steps with the same setting; the trainer reports once in as many steps."""

_BATCH = 16
_SKIPPED = 10
_TARGET = 0.02


def measure_overhead(rounds: int) -> int:
    """Time steps of the paper's network without reports, with reports, and with reports and a checkpoint.

    One run switches between the three every ten steps of 16 images, because a machine's speed drifts by more
    within minutes than the overhead. Reports are the console, status.json, and the sums of losses and correct
    predictions. A checkpoint has 0.5 GB; the steps during which it is written pay for it, and the overhead
    counts one per default checkpoint interval of `alexnet-train`.

    Args:
        rounds: Number of blocks of ten steps for each of the three.

    Returns:
        Exit code: 0 where the overhead is below the target, else 1.
    """
    blocks = len(_WAYS) * rounds
    steps = _SKIPPED + _BLOCK * blocks + 1
    images = (steps + 1) * _BATCH * 5 // 4  # the demo images have a fifth for validation
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        common.run([common.tool("alexnet-prep"), "demo", str(work / "images"), "--images", str(images)])
        common.run([common.tool("alexnet-prep"), "shard", str(work / "images"), str(work / "shards")])
        recipe = replace(load_recipe("paper"), batch_size=_BATCH, mean="channel", epochs=1)
        debugging = Debugging(synthetic=True, steps=steps)
        job = TrainJob(
            work / "shards", work / "run", recipe, saving=Saving(minutes=None), debugging=debugging
        )
        callbacks = [ConsoleCallback(recipe.epochs), StatusCallback(job.out)]
        keep_freed_memory()
        watchdog = HangWatchdog(DistEnv(), job.hang_seconds)
        trainer = _Switching(DistEnv(), job, callbacks, watchdog)
        trainer.run()
    seconds = trainer.seconds(blocks)
    off, reports, saving = (seconds[way] for way in _WAYS)
    rows = [(way, f"{min(s):.4f}", f"{median(s):.4f}", f"{max(s):.4f}") for way, s in seconds.items()]
    print("\n" + common.markdown(("switched on", "s/step, minimum", "median", "maximum"), rows))
    of_reports = median(on / bare for on, bare in zip(reports, off, strict=True)) - 1
    # Differences of consecutive blocks, so that drift cancels out.
    checkpoint = _BLOCK * median(on - less for on, less in zip(saving, reports, strict=True))
    minutes = Saving().minutes
    assert minutes is not None
    share = of_reports + checkpoint / (60 * minutes)
    print(
        f"\nreports and metrics {of_reports:+.2%} of a step; a checkpoint {checkpoint:.2f} s, one in "
        f"{minutes:g} minutes {checkpoint / (60 * minutes):+.2%}; together {share:+.2%}, target < "
        f"{_TARGET:.0%}: {common.judged(share < _TARGET)}"
    )
    return int(share >= _TARGET)


class _Switching(Trainer):
    """A trainer that switches reports, metrics and checkpoints on and off, and times each step."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._moments: list[float] = []
        self._add = self.totals.add
        self.totals.add = self._add_or_not  # type: ignore[method-assign]

    def seconds(self, blocks: int) -> dict[str, list[float]]:
        """Return seconds per step: setting → one value per block."""
        borders = self._moments[_SKIPPED::_BLOCK][: blocks + 1]
        seconds = [(end - start) / _BLOCK for start, end in pairwise(borders)]
        return {way: seconds[number :: len(_WAYS)] for number, way in enumerate(_WAYS)}

    @property
    def _way(self) -> str:
        return _WAYS[max(len(self._moments) - 1 - _SKIPPED, 0) // _BLOCK % len(_WAYS)]

    def _step(self, timer: Any, step: int, batch: Any) -> None:
        number = len(self._moments) - _SKIPPED
        if number >= 0 and number % _BLOCK == 0:
            self.checkpointer.finish()  # a checkpoint still being written belongs to the previous block
        self._moments.append(time.perf_counter())
        super()._step(timer, step, batch)
        if number >= 0 and number % _BLOCK == 0 and self._way == _WAYS[2]:
            self._save()

    def _report(self, *arguments: Any) -> None:
        if self._way != _WAYS[0]:
            super()._report(*arguments)

    def _add_or_not(self, *arguments: Any) -> None:
        if self._way != _WAYS[0]:
            self._add(*arguments)
