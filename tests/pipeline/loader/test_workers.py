"""Worker processes give the batches, and the errors, of threads in the process."""

import gc
import os
import subprocess
import sys

import pytest
import torch
from helpers.folders import overwrite
from helpers.synthetic import tiny_images, write_dataset

from pipeline import EvalView, Loader, Placement, RunError, TrainView, UsageError
from pipeline.dataset.index import parse_index

SAMPLES = 41


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "d", dict.fromkeys(("train", "val"), tiny_images(SAMPLES)), 16, 3)


def make(data, split, view, size, workers, **options):
    return Loader(data, split, view, size, placement=Placement(0, 1, threads=3, workers=workers), **options)


def epochs(loader, count=2):
    return [
        [(batch.keys, batch.labels.tolist(), batch.positions.tolist(), batch.images) for batch in loader]
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("split", "view", "size", "options"),
    [
        ("train", TrainView(12), 7, {}),
        (
            "train",
            TrainView(12, augmentation="random-resized-crop"),
            12,
            {"half": True, "channels_last": True},
        ),
        ("val", EvalView("ten-crop", 12), 6, {}),
    ],
)
def test_the_batches_are_those_of_threads(data, split, view, size, options):
    with (
        make(data, split, view, size, 0, **options) as threads,
        make(data, split, view, size, 2, **options) as workers,
    ):
        for expected, got in zip(epochs(threads), epochs(workers), strict=True):
            assert [batch[:3] for batch in got] == [batch[:3] for batch in expected]
            assert all(torch.equal(a[3], b[3]) for a, b in zip(got, expected, strict=True))


def test_an_iteration_can_be_left_and_entered_elsewhere(data):
    with make(data, "val", EvalView(crop=16), 4, 2) as loader:
        whole = [batch.keys for batch in loader]
        for batch in loader:
            assert batch.keys == whole[0]
            break
        loader.set_position(3, 5)
        assert [batch.keys for batch in loader] == whole[5:]


def spoil_image(data):
    index = parse_index(data.indexes("val")[1].read_bytes())
    overwrite(data.tars("val")[1], index[2]["jpg"].offset, b"GIF89a--")
    return RunError, rf"^{data.tars('val')[1]}: the sample {index[2]['jpg'].name[:-4]} .* is damaged: "


def spoil_index(data):
    data.indexes("val")[1].write_bytes(b"v1.2 0\n")
    return UsageError, r"lists 0 samples, but the manifest says"


def delete_tar(data):
    data.tars("val")[1].unlink()
    return RunError, r"cannot be read: No such file"


@pytest.mark.parametrize("spoil", [spoil_image, spoil_index, delete_tar])
def test_errors_are_those_of_threads(data, spoil):
    kind, message = spoil(data)
    for workers in (0, 2):
        with (
            make(data, "val", EvalView(crop=16), 4, workers) as loader,
            pytest.raises(kind, match=message) as caught,
        ):
            list(loader)
        assert "\n" not in str(caught.value)


def test_a_worker_that_dies_is_an_error_and_the_next_iteration_has_others(data):
    with make(data, "val", EvalView(crop=16), 4, 2) as loader:
        batches = iter(loader)
        next(batches)
        os.kill(loader._maker._pools[1]._link.process.pid, 9)
        with pytest.raises(RunError, match=r"^a worker process of the loader died"):
            list(batches)
        assert sum(len(batch.keys) for batch in loader) == SAMPLES


def test_a_loader_that_nobody_holds_ends_its_workers(data):
    loader = make(data, "val", EvalView(crop=16), 4, 2)
    next(iter(loader))
    workers = [pool._link.process for pool in loader._maker._pools]
    del loader
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)


def test_an_interrupt_while_a_plan_is_sent_leaves_a_loader_that_works(data, monkeypatch):
    """Ctrl-C may come between any two operations of the main thread."""
    with make(data, "val", EvalView(crop=16), 4, 2) as loader:
        batches = iter(loader)
        next(batches)
        link = loader._maker._pools[0]._link
        with monkeypatch.context() as patch:
            patch.setattr(link, "_outgoing", Interrupted())
            with pytest.raises(KeyboardInterrupt):
                list(batches)
        assert sum(len(batch.keys) for batch in loader) == SAMPLES


class Interrupted:
    def put(self, message):
        raise KeyboardInterrupt


def leave(image, generator):
    raise SystemExit(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_that_wants_to_exit_is_an_error(data, workers):
    loader = make(data, "val", EvalView(crop=16), 4, workers, transform=leave)
    with loader, pytest.raises(RunError, match="the transform failed for the sample val-0: SystemExit: 3"):
        list(loader)


def test_workers_do_without_torch():
    code = "import sys, pipeline.loader.threads.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
