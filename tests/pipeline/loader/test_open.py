"""`open_loader` gives the loader that its arguments describe, with the state of a StatefulDataLoader."""

import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from helpers.folders import refused
from helpers.synthetic import tiny_images, write_dataset

from pipeline import Dataset, EvalView, Loader, Placement, TrainView, open_loader
from pipeline.loader import open as loader_opening

BATCH, BATCHES = 8, 5
VIEW = TrainView(12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open") / "d"
    return write_dataset(folder, {"train": tiny_images(43), "val": tiny_images(9)}, 16, shards=3)


def opened(data, **options):
    return open_loader(data, "train", global_batch=BATCH, view=VIEW, seed=1, **options)


def keys(batches):
    return [tuple(batch.keys) for batch in batches]


@pytest.mark.parametrize("of", [lambda data: data, lambda data: data.root, lambda data: str(data.root)])
@pytest.mark.parametrize("options", [{"half": True}, {"channels_last": True}, {"threads": 1}])
def test_it_is_the_loader_of_these_arguments(data, of, options):
    place = Placement(1, 2, threads=options.get("threads"), local_world_size=2)
    settings = {name: value for name, value in options.items() if name != "threads"}
    with (
        opened(of(data), rank=1, world_size=2, **options) as found,
        Loader(data, "train", VIEW, BATCH, placement=place, seed=1, **settings) as expected,
    ):
        assert (found.placement, len(found)) == (place, BATCHES)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.images, other.images)
            assert one.images.stride() == other.images.stride()
            assert torch.equal(one.labels, other.labels)
            assert one.keys == other.keys


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("at", range(BATCHES + 1))
def test_the_state_is_that_of_a_stateful_data_loader(data, at, ended):
    """The position after the last batch; once an iteration has ended, the whole of the next epoch."""
    with opened(data) as first:
        epochs = [keys(first) for _ in range(3)]
        first.set_epoch(1)
        stream = iter(first)
        seen = keys(islice(stream, at))
        if ended:
            seen += keys(stream)
        state = pickle.loads(pickle.dumps(first.state_dict()))
    with opened(Dataset.open(data.root), threads=1) as second:
        second.load_state_dict(state)
        assert second.state_dict() == state
        if not ended:
            assert seen + keys(second) == epochs[1]
        assert (keys(second), len(second)) == (epochs[2], BATCHES)
        second.set_position(0, at)
        assert [keys(second), keys(second)] == [epochs[0][at:], epochs[1]]


def test_an_evaluation_divides_whole_batches(data):
    views = {"global_batch": 4, "view": EvalView("center", 16), "world_size": 2}
    with open_loader(data, "val", rank=0, **views) as one, open_loader(data, "val", rank=1, **views) as other:
        positions = [
            np.concatenate([batch.positions for batch in loader]).tolist() for loader in (one, other)
        ]
    assert positions == [[0, 1, 2, 3, 8], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 processes"),
        ({"world_size": 3}, "3 processes do not divide a global batch of 8; choose one of 9"),
        ({"workers": -1}, "workers is -1, not 0 or more"),
    ],
)
def test_impossible_arguments_are_one_line(data, options, part):
    refused(lambda: opened(data, **options), part)


@pytest.mark.parametrize(
    ("gpu", "dali", "backend"),
    [(None, True, "threads"), pytest.param(0, True, "dali", marks=pytest.mark.dali), (0, False, "threads")],
)
def test_auto_takes_the_faster_backend(data, gpu, dali, backend, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (9, 0))
    monkeypatch.setattr(loader_opening, "has_dali", lambda: dali)
    with opened(data, gpu=gpu, threads=1) as loader:
        assert (loader.backend, loader.placement.gpu) == (backend, gpu)
