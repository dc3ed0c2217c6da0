"""Training runs for tests: start them in this process or by the command, and compare them."""

import itertools
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.entries import Recorder, run_job
from pipeline.errors import RunError
from trainer.distributed.env import DistEnv, gather_objects
from trainer.recipe import load_recipe
from trainer.runs import checkpoint, metrics_file
from trainer.training import trainer
from trainer.training.options import TrainJob
from trainer.training.step import train_step
from trainer.training.trainer import train

CLOCKS = {
    "train_seconds": 0.0,
    "val_seconds": 0.0,
    "images_per_second": 0.0,
    "data_wait": 0.0,
    "loader": None,
}


def train_here(job: TrainJob, stop_after: int = 0, looks: bool = False) -> Recorder:
    """Train in this process, on one thread; up to the checkpoint of epoch `stop_after` if given.

    Args:
        job: The job.
        stop_after: Epoch, counted from 1, whose end the recorder stops the run after; 0 for none.
        looks: Whether the recorder wants weights.

    Returns:
        The recorder.
    """
    recorder, threads = Recorder(stop_after), torch.get_num_threads()
    recorder.wants_weights = looks
    torch.set_num_threads(1)
    with pytest.raises(RunError, match="stopped here") if stop_after else nullcontext():
        train(DistEnv(), job, [recorder])
    torch.set_num_threads(threads)
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


def job_of(data: Path, out: Path, **settings: object) -> TrainJob:
    """Return the job of `command(data, out, **settings)`."""
    recipe = load_recipe("demo", [f"{key}={value}" for key, value in (SETTINGS | settings).items()])
    return TrainJob(str(data), out, recipe)


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


def train_until_killed(env: DistEnv, job: TrainJob, step: int) -> None:
    """Train; the first process kills all processes, itself last, as it begins a step."""
    pids, train_step, steps = gather_objects(os.getpid(), env), trainer.train_step, itertools.count()

    def dies(*arguments: object) -> object:
        if env.is_first and next(steps) == step:
            for pid in reversed(pids):
                os.kill(pid, signal.SIGKILL)
        return train_step(*arguments)

    trainer.train_step = dies
    run_job(env, job)


def die_after(steps: int, job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a step fails as if the process had died."""
    done = []

    def dies(*arguments):
        if len(done) == steps:
            raise RunError("killed")
        done.append(1)
        return train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", dies)
        with pytest.raises(RunError, match="killed"):
            train_here(job)
