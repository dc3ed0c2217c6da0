"""The loader: an epoch is the same on any number of processes and either backend, wherever it is entered."""

import gc
import json
from concurrent.futures import Future
from dataclasses import replace
from itertools import count, pairwise
from threading import Event

import pytest
import torch
from helpers.folders import refused
from helpers.synthetic import CLASSES, tiny_images, write_dataset

from pipeline import Dataset, EvalView, Loader, LoaderStats, Placement, TrainView, UsageError
from pipeline.loader import stats
from pipeline.loader.threads import pool

VIEW = TrainView(crop=16)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A function that returns a dataset of some samples and shards, and writes each only once."""
    folder = tmp_path_factory.mktemp("datasets")
    made: dict[tuple[int, int], Dataset] = {}

    def get(samples, shards=3):
        if (samples, shards) not in made:
            splits = dict.fromkeys(("train", "val"), tiny_images(samples))
            made[samples, shards] = write_dataset(folder / f"{samples}-{shards}", splits, 16, shards)
        return made[samples, shards]

    return get


@pytest.fixture(scope="module")
def data(datasets):
    return datasets(40)


def make(data, batch_size=8, view=VIEW, split="train", **options):
    return Loader(data, split, view, batch_size, **options)


def recorded(loader):
    """Read an epoch as a list of (keys, labels, copy of the images)."""
    return [(batch.keys, batch.labels.tolist(), batch.images.clone()) for batch in loader]


def keys_of(loader):
    return [key for batch in loader for key in batch.keys]


def assert_equal(got, expected):
    assert [batch[:2] for batch in got] == [batch[:2] for batch in expected]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(got, expected, strict=True))


@pytest.fixture(scope="module")
def epochs(data):
    """Three epochs of `make(data)`, five batches each, read without an interruption."""
    with make(data) as loader:
        return [recorded(loader) for _ in range(3)]


BACKENDS = ("threads", pytest.param("dali", marks=pytest.mark.dali))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.no_dali
def test_the_processes_slices_are_the_batches_of_one(datasets, world_size, backend):
    """Three epochs of twelve samples a batch, and an evaluation in batches of five."""
    data, keys = datasets(41), []
    with make(data, 12, TrainView(12)) as one:
        expected = [recorded(one) for _ in range(3)]
    ranks = [Placement(rank, world_size, threads=1) for rank in range(world_size)]
    for rank, place in enumerate(ranks):
        with make(data, 12, TrainView(12), placement=place, backend=backend) as loader:
            size = 12 // world_size
            mine = slice(rank * size, (rank + 1) * size)
            for whole in expected:
                assert_equal(recorded(loader), [tuple(part[mine] for part in batch) for batch in whole])
        with make(data, 5, EvalView(crop=16), "val", placement=place, backend=backend) as evaluation:
            assert len(evaluation) == len(range(rank, 9, world_size))
            for batch in evaluation:
                keys += zip(batch.positions.tolist(), batch.keys, strict=True)
                assert batch.labels.tolist() == [int(key.split("-")[1]) % CLASSES for key in batch.keys]
    assert sorted(keys) == [(k, f"val-{k}") for k in range(41)]


def test_epochs_differ_and_can_be_entered_anywhere(data, epochs):
    orders = [[key for keys, *_ in epoch for key in keys] for epoch in epochs]
    assert len({*map(tuple, orders)}) == 3
    assert len({*orders[0]}) == 40
    with make(data) as loader:
        loader.set_epoch(2)
        assert_equal(recorded(loader), epochs[2])
        loader.set_position(1, 3)
        assert_equal(recorded(loader), epochs[1][3:])
        assert (loader.epoch, loader.batch) == (2, 0)
    with make(data, seed=1) as other:
        assert keys_of(other) != orders[0]


@pytest.mark.parametrize("at", [1, 5, 8, 15])
@pytest.mark.parametrize(
    ("world_size", "backend"),
    [(1, "threads"), (2, "threads"), pytest.param(4, "dali", marks=pytest.mark.dali)],
)
@pytest.mark.no_dali
def test_any_number_of_processes_and_either_backend_go_on_with_the_next_batch(
    data, epochs, at, world_size, backend
):
    with make(data) as first:
        for _, _ in zip(range(at), (batch for _ in range(3) for batch in first), strict=False):
            state = json.loads(json.dumps(first.state_dict()))
    whole = [batch for epoch in epochs for batch in epoch]
    for rank in range(world_size):
        place = Placement(rank, world_size, threads=1)
        with make(data, placement=place, backend=backend) as loader:
            loader.load_state_dict(state)
            assert 5 * loader.epoch + loader.batch == at
            size = 8 // world_size
            mine = slice(rank * size, (rank + 1) * size)
            rest = [batch for _ in range(loader.epoch, 3) for batch in recorded(loader)]
            assert_equal(rest, [tuple(part[mine] for part in batch) for batch in whole[at:]])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "seed was 0, now 5"),
        ({"batch_size": 5}, "global_batch was 8, now 5"),
        ({"view": TrainView(crop=12)}, "crop was 16, now 12"),
        ({"view": TrainView(16, augmentation="random-resized-crop")}, "augmentation was paper, now random"),
        ({"view": TrainView(16, crop_group=4)}, "crop_group was 1, now 4"),
        ({"view": TrainView(16, (1.0, 2.0, 3.0))}, "colors was"),
        ({"samples": 24}, "dataset was .*samples was 40, now 24"),
    ],
)
def test_a_state_of_another_run_is_refused(datasets, change, named):
    with make(datasets(40)) as loader:
        state = loader.state_dict()
    data = datasets(change.get("samples", 40))
    options = {name: value for name, value in change.items() if name != "samples"}
    with make(data, **options) as other, pytest.raises(UsageError, match=named):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"batch": 6}, "batch 6 of an epoch of 5 batches"),
        (lambda state: state | {"epoch": "?"}, "cannot be read"),
        (lambda state: {"epoch": 3}, "cannot be read"),
    ],
)
def test_a_damaged_state_is_refused(data, change, message):
    with make(data) as loader, pytest.raises(UsageError, match=message):
        loader.load_state_dict(change(loader.state_dict()))


def test_a_state_after_leaving_the_loop_is_of_that_batch(data, epochs):
    with make(data) as loader:
        for number, _ in enumerate(loader):
            if number == 2:
                break
        state = loader.state_dict()
    with make(data) as loader:
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert_equal(recorded(loader), epochs[0][3:])


def test_an_abandoned_epoch_starts_over(data, epochs):
    with make(data) as loader:
        next(iter(loader))
        assert_equal(recorded(loader), epochs[0])


def test_as_many_batches_as_there_are_make_an_epoch(data, epochs):
    with make(data) as loader:
        for epoch in epochs:
            assert [batch.keys for _, batch in zip(range(5), loader, strict=False)] == [
                one[0] for one in epoch
            ]
        assert (loader.epoch, loader.batch) == (2, 5)


def test_a_new_iteration_ends_an_older_one(data):
    with make(data) as loader:
        older = iter(loader)
        next(older)
        newer = iter(loader)
        next(newer)
        refused(lambda: next(older), "another iteration of this loader has begun", error=RuntimeError)
        assert loader.batch == 1
        assert len(list(newer)) == 4
        assert loader.epoch == 1


def test_a_loaded_place_stays_though_an_iteration_is_alive(data):
    with make(data) as loader:
        stream = iter(loader)
        next(stream)
        state = loader.state_dict()
        next(stream)
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        refused(lambda: next(stream), "another iteration", error=RuntimeError)
        assert len(list(loader)) == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_outlive_the_steps_and_the_loader(data, backend):
    with make(data, view=TrainView(12), backend=backend) as loader:
        kept = [(batch.images, batch.images.clone()) for _ in range(3) for batch in loader]
    assert all(torch.equal(image, copy) for image, copy in kept)


def test_memory_of_batches_that_nobody_holds_is_used_again(data):
    with make(data, 4) as loader:
        places = {batch.images.data_ptr() for _ in range(5) for batch in loader}
    assert len(places) < 10  # of 50 batches


def test_sorted_tars_are_mixed_more_finely(data):
    """Tars of other tools may be sorted by class: each batch takes single samples of many places."""
    sorted_tars = replace(
        data, manifest=replace(data.manifest, source=replace(data.manifest.source, layout="adopted"))
    )
    with make(sorted_tars, 6) as loader:
        near = [abs(int(b) - int(a)) == 1 for batch in loader for a, b in pairwise(batch.positions)]
    assert sum(near) / len(near) < 0.2


class AtOnce:
    """An executor that runs a task when it is submitted."""

    def __init__(self, *_, **__):
        pass

    def submit(self, task, *arguments):
        future = Future()
        future.set_result(task(*arguments))
        return future

    def shutdown(self):
        pass


@pytest.mark.parametrize(
    ("backend", "decode", "whole"),
    [
        # A batch is one task of eight images, whose looks at the clock lie between the consumer's two.
        ("threads", 8, LoaderStats(5, 1, 8, 8, wait=1 + 18, ready=9 / 5, under_way=9 / 5)),
        pytest.param(
            *("dali", None, LoaderStats(5, 1, None, None, wait=1 + 2, ready=None, under_way=7 / 5)),
            marks=pytest.mark.dali,
        ),
    ],
)
def test_what_it_does_is_seen(data, monkeypatch, backend, decode, whole):
    """A second passes between two looks at the clock; tasks run at once."""
    clock = count()
    monkeypatch.setattr(stats, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(pool, "ThreadPoolExecutor", AtOnce)
    with make(data, backend=backend) as loader:
        assert loader.stats() == LoaderStats(0, 0, 0, 0, 0, 0, 0)
        stream = iter(loader)
        next(stream)
        first = loader.stats()
        list(stream)
        found = loader.stats()
    assert found == loader.stats() == whole
    assert (first.batches, first.under_way, first.decode) == (1, 0, decode)
    rest = found - first
    assert (rest.batches, rest.read) == (4, 1)
    assert rest.under_way == pytest.approx(5 / 4 * whole.under_way)
    assert (rest.ready is None) == (backend == "dali")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -4}, "seed is -4, not 0 or more"),
        ({"view": TrainView(crop=17)}, "crop of 17 px"),
        ({"split": "test"}, "no split 'test', only train, val"),
        ({"batch_size": 48}, "40 samples, fewer than one global batch of 48"),
        ({"placement": Placement(0, 3)}, "3 processes do not divide a global batch of 8; choose one of 9"),
    ],
)
def test_impossible_arguments_are_refused(data, options, message):
    refused(lambda: make(data, **options), message)


def test_a_closed_loader_is_refused(data):
    loader = make(data)
    loader.close()
    refused(lambda: list(loader), "this loader is closed")


class Cycle:
    """Something that holds an iterator and itself, so that only the garbage collector ends it."""

    def __init__(self, loader):
        self.batches, self.me = iter(loader), self


@pytest.fixture
def no_collection():
    """Within the test, garbage is collected only where the test says so."""
    gc.disable()
    yield
    gc.enable()


def test_an_iterator_that_a_thread_collects_as_garbage_does_not_wait_for_that_thread(data, no_collection):
    seen, abandoned, collected = [], Event(), Event()

    def collect(image, generator):
        seen.append(image)
        if len(seen) == 5:  # of the second batch, which nobody will ask for
            abandoned.wait(10)
            gc.collect()
            collected.set()
        return image

    place = Placement(threads=1)
    with make(data, 4, EvalView(crop=16), "val", transform=collect, placement=place) as loader:
        next(Cycle(loader).batches)
        abandoned.set()
        assert collected.wait(10)
        assert len(list(loader)) == 10
