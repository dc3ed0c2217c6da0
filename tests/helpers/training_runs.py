"""Training runs for tests: start them in this process or by the command, and compare them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.entries import Recorder
from pipeline.errors import RunError
from trainer.distributed.env import DistEnv
from trainer.runs import checkpoint, metrics_file
from trainer.training.options import TrainJob
from trainer.training.trainer import train

CLOCKS = {"train_seconds": 0.0, "val_seconds": 0.0, "images_per_second": 0.0, "data_wait": 0.0}


def train_here(job: TrainJob, stop_after: int = 0, looks: bool = False) -> Recorder:
    """Train in this process, up to the checkpoint of epoch `stop_after` if given; return the recorder."""
    recorder = Recorder(stop_after)
    recorder.wants_weights = looks
    if stop_after:
        with pytest.raises(RunError, match="stopped here"):
            train(DistEnv(), job, recorder)
    else:
        train(DistEnv(), job, recorder)
    return recorder


def assert_same(one: object, other: object, where: str = "checkpoint") -> None:
    """Check that two checkpoints are equal bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path) -> None:
    """Check that two runs have equal checkpoints and, but for times, equal metrics."""
    for name in ("last.pt", "best.pt"):
        assert_same(checkpoint.load(one / name), checkpoint.load(other / name), name)
    rows = [[replace(row, **CLOCKS) for row in metrics_file.read_metrics(folder)] for folder in (one, other)]
    assert rows[0] == rows[1]


SETTINGS = {"crop": 64, "width": 0.1, "batch_size": 32}


COMMAND = (sys.executable, "-c", "from cli.train import main; main()")


def command(data: Path, out: Path, *more: str, **settings: object) -> list[str]:
    sets = [part for key, value in (SETTINGS | settings).items() for part in ("--set", f"{key}={value}")]
    return [str(data), "--out", str(out), "--recipe", "demo", *sets, *more]


def start(arguments: list[str], program: tuple[str, ...] = COMMAND) -> subprocess.Popen[str]:
    """Start the command in a process group of its own."""
    return subprocess.Popen(
        [*program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def kill_when(process: subprocess.Popen[str], sign: Path) -> None:
    """Kill the whole process group as soon as the file `sign` exists."""
    while not sign.exists() and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
