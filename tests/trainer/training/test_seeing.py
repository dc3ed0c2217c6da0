"""Status, TensorBoard events, profiler trace, provenance and dry run of a real small run."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace

import pytest
import torch
from helpers.entries import Recorder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import UsageError
from pipeline.loader.live_shards import ReadOptions
from pipeline.loader.loader import Loader
from trainer.callbacks import status
from trainer.callbacks.status import StatusCallback
from trainer.callbacks.tensorboard import TensorBoardCallback, tiled
from trainer.data import LoaderOptions
from trainer.distributed.env import DistEnv, Processes
from trainer.runs import checkpoint
from trainer.runs.metrics_file import read_metrics
from trainer.runs.output import new_lock
from trainer.runs.run_folder import TENSORBOARD, git_state, provenance
from trainer.runs.status import read_run
from trainer.training.dry_run import plan
from trainer.training.options import Debugging, Saving, TrainJob
from trainer.training.trainer import train


@pytest.fixture(scope="module")
def seen(tiny_dataset, tiny_recipe, tmp_path_factory):
    """A run of two epochs of nine steps, stopped within the first and resumed, with all callbacks."""
    out = tmp_path_factory.mktemp("seen") / "run"
    trace = out.parent / "trace.json"
    recipe = replace(tiny_recipe, epochs=2, batch_size=10)
    job = TrainJob(tiny_dataset.root, out, recipe, saving=Saving(steps=1, keep=99))
    recorder = Recorder()
    for debugging in (Debugging(steps=5), Debugging(profile=trace)):
        callbacks = [recorder, StatusCallback(out), TensorBoardCallback(out)]
        train(DistEnv(), replace(job, resume="auto", debugging=debugging), callbacks)
    return out, trace, recorder


@pytest.fixture(scope="module")
def events(seen):
    found = EventAccumulator(
        str(seen[0] / TENSORBOARD), size_guidance={"scalars": 0, "histograms": 0, "images": 0}
    )
    found.Reload()
    return found


def test_scalars_are_what_was_reported_each_update_once(seen, events):
    out, _, recorder = seen
    rows = read_metrics(out)
    for name in ("train_loss", "train_top1", "val_loss", "val_top1", "val_top5"):
        split, _, metric = name.partition("_")
        scalars = events.Scalars(f"{'epoch' if split == 'train' else 'validation'}/{metric}")
        assert [scalar.step for scalar in scalars] == [9, 18]
        assert [scalar.value for scalar in scalars] == pytest.approx([getattr(row, name) for row in rows])
    assert [row.loader.batches for row in rows] == [4, 9]  # since the resumption, and of the second epoch
    reported = {row.steps: row for row in recorder.steps}
    for name, value in (
        ("train/lr", lambda row: row.lr),
        ("loader/batches ready", lambda row: row.loader.ready),
        ("loader/decode, seconds per batch", lambda row: row.loader.decode),
    ):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == sorted(reported)
        assert [scalar.value for scalar in scalars] == pytest.approx(
            [value(reported[s.step]) for s in scalars]
        )


def test_histograms_hold_the_weights_and_updates_are_measured_against_them(seen, events):
    out, *_ = seen
    models = {s: checkpoint.load(out / f"step-{s:08d}.pt")["model"] for s in (17, 18)}
    weights = models[18]["model.fc7.weight"]
    histogram = events.Histograms("weights/fc7.weight")[-1]
    assert histogram.step == 18
    assert histogram.histogram_value.num == weights.numel()
    assert histogram.histogram_value.sum == pytest.approx(float(weights.double().sum()), rel=1e-4, abs=1e-4)
    update = weights - models[17]["model.fc7.weight"]
    ratio = events.Scalars("update to weight/fc7.weight")[-1].value
    assert ratio == pytest.approx(float(update.norm() / weights.norm()), rel=1e-5)
    assert "updates/conv1.weight" in events.Tags()["histograms"]


def test_kernels_are_an_image(seen, events):
    images = events.Images("kernels")
    assert [image.step for image in images] == [9, 18]
    assert images[0].width == 12 * (11 * 4 + 2)


def test_kernels_are_tiled_in_rows_with_zero_as_gray():
    kernels = torch.zeros(13, 3, 2, 2)
    kernels[12, 0, 1, 1] = -4.0
    image = tiled(kernels)
    side = 2 * 4 + 2
    assert image.shape == (3, 2 * side, 12 * side)
    assert image[:, 1, 1].tolist() == [0.5, 0.5, 0.5]
    assert image[0, side + 8, 8] == 0.0
    assert image[:, side + 5, side + 5].tolist() == [1.0, 1.0, 1.0]  # no kernel there


def test_a_trace_holds_the_recorded_updates(seen):
    _, trace, recorder = seen
    found = json.loads(trace.read_text())["traceEvents"]
    names = [event.get("name", "") for event in found]
    steps = {name for name in names if name.startswith("ProfilerStep#")}
    assert len(steps) == 5
    assert any("convolution_backward" in name for name in names)
    assert any(str(trace) in note for note in recorder.notes)


def test_status_says_how_it_ended(seen):
    out, *_ = seen
    found = read_run(out)
    assert found.health == "finished"
    assert (found.status.epochs, found.status.step.steps, found.status.pid) == (2, 18, os.getpid())
    assert found.status.line == f"finished 2 epochs: {out}"
    assert len(found.rows) == 2
    assert list(found.checkpoints)[:2] == ["last.pt", "best.pt"]


def test_status_tells_the_living_from_the_dead(seen, tmp_path):
    out, *_ = seen
    for name in ("recipe.toml", "run.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    assert read_run(tmp_path).health == "unknown: the run has no status.json"
    base = json.loads((out / "status.json").read_text()) | {"state": "training", "updated": time.time()}
    (tmp_path / "status.json").write_text(json.dumps(base))
    assert read_run(tmp_path).health == "dead: no process works there; continue with --resume"
    with new_lock(tmp_path) as lock:
        lock.acquire()
        for changes, health in (
            ({}, "training"),
            ({"updated": time.time() - 600}, "no sign of life for 10 min"),
            ({"state": "stopped"}, "stopped"),
        ):
            (tmp_path / "status.json").write_text(json.dumps(base | changes))
            assert read_run(tmp_path).health == health
        elsewhere = json.loads((tmp_path / "run.lock").read_text()) | {"host": "elsewhere"}
        (tmp_path / "run.lock").write_text(json.dumps(elsewhere))
        (tmp_path / "status.json").write_text(json.dumps(base))
        assert read_run(tmp_path).health == "training"  # as the lock is renewed
        os.utime(tmp_path / "run.lock", (1, 1))
        assert read_run(tmp_path).health == "dead: no process works there; continue with --resume"
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(UsageError, match=r"status\.json or run\.json cannot be read"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="no run there"):
        read_run(tmp_path / "nowhere")


def test_a_failed_run_says_so_and_a_refused_one_leaves_the_folder_alone(tiny_dataset, tiny_recipe, tmp_path):
    out = tmp_path / "run"
    job = TrainJob(tiny_dataset.root, out, replace(tiny_recipe, epochs=1, arch="alexnet_owt", lr=1e6))
    with pytest.raises(Exception, match=r"no longer finite|not finite"):
        train(DistEnv(), job, [StatusCallback(out)])
    before = (out / "status.json").read_bytes()
    assert json.loads(before)["state"] == "failed"
    with pytest.raises(UsageError, match="already holds files"):
        train(DistEnv(), job, [StatusCallback(out)])
    assert (out / "status.json").read_bytes() == before


def test_a_run_knows_where_it_comes_from(seen):
    facts = json.loads((seen[0] / "run.json").read_text())
    assert facts["host"]["name"] == socket.gethostname()
    assert facts["host"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["host"]["gpus"] == [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    assert facts["command"]
    assert facts["started"].startswith("20")
    assert set(provenance()) >= {"started", "command", "host"}


def test_git_state_is_the_commit_and_whether_files_changed(tmp_path):
    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", tmp_path, *author, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert git_state(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    commit = git("rev-parse", "HEAD")
    assert git_state(tmp_path.resolve()) == commit
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path.resolve()) == f"{commit} changed"
    (tmp_path / "inside").mkdir()
    assert git_state(tmp_path / "inside") == ""


def test_a_plan_is_what_the_run_does(tiny_dataset, tiny_recipe, tmp_path, monkeypatch):
    recipe = replace(tiny_recipe, epochs=3, batch_size=10)
    cache, threads = tmp_path / "cache", []
    batches = Loader.__iter__
    monkeypatch.setattr(
        Loader, "__iter__", lambda self: threads.append(self.placement.threads) or batches(self)
    )
    options = LoaderOptions(threads=3, access=ReadOptions(cache=cache))
    job = TrainJob(tiny_dataset.root, tmp_path / "never", recipe, loader_options=options)
    found = plan(job, Processes("cpu", 2, ""))
    assert threads == [3, 3]
    assert {path.parent.name for path in cache.rglob("*.tar")} == {"train", "val"}
    assert (found.steps_per_epoch, found.steps, found.batch_size, found.processes) == (9, 27, 5, 2)
    assert found.samples == {"train": 90, "val": 30}
    assert found.recipe == recipe.to_toml()
    assert not (tmp_path / "never").exists()


def test_a_shard_cut_short_is_found_by_planning(tiny_dataset, tiny_recipe, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_dataset.root, copy)
    tar = next((copy / "val").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(UsageError, match=tar.name):
        plan(TrainJob(copy, tmp_path / "never", tiny_recipe), Processes("cpu", 1, ""))


def test_the_status_is_written_beside_training(tmp_path, monkeypatch):
    """Not in its thread, which a slow disk would stop; and in the end it is there."""
    threads, write = [], status.write_bytes
    monkeypatch.setattr(
        status, "write_bytes", lambda *a: threads.append(threading.current_thread()) or write(*a)
    )
    callback = StatusCallback(tmp_path)
    callback.on_start({})
    callback.on_end("finished", "done")
    assert threads
    assert threading.main_thread() not in threads
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
