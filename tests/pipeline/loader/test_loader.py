"""The loader: each sample exactly as often as it should be, and exact resumption, on any number of ranks."""

import json
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.folders import refused
from helpers.synthetic import CLASSES, tiny_images, write_dataset

from pipeline import Dataset, EvalView, Loader, Placement, TrainView, UsageError
from pipeline.loader import order

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
    return Loader(data, split, view, batch_size, **({"keys": True} | options))


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


@pytest.mark.parametrize(
    ("samples", "world_size", "batch"),
    [
        (13, 2, 3),  # N % W ≠ 0 and (N // W) % B = 0
        (9, 4, 2),  # in evaluation, a rank's last batch is empty
        (9, 8, 1),
        (40, 1, 7),
    ],
)
def test_ranks_share_each_epoch(datasets, samples, world_size, batch):
    steps = samples // (world_size * batch)
    shown = {"train": [], "val": []}
    for rank in range(world_size):
        place = Placement(rank, world_size, threads=1)
        with make(datasets(samples), batch, placement=place) as training:
            epoch = recorded(training)
            assert [len(keys) for keys, *_ in epoch] == [batch] * steps == [batch] * len(training)
        with make(datasets(samples), batch, EvalView(crop=16), "val", placement=place) as evaluation:
            measured = recorded(evaluation)
            assert len(measured) == len(evaluation)
        for split, batches in (("train", epoch), ("val", measured)):
            for keys, labels, _ in batches:
                assert labels == [int(key.split("-")[1]) % CLASSES for key in keys]
                shown[split] += keys
    assert len(set(shown["train"])) == len(shown["train"]) == steps * world_size * batch
    assert sorted(shown["val"]) == sorted(f"val-{k}" for k in range(samples))


def test_more_ranks_than_samples_evaluate_each_once(datasets):
    view, keys = EvalView(crop=16), []
    for rank in range(4):
        with make(datasets(3), 2, view, "val", placement=Placement(rank, 4, threads=1)) as loader:
            keys += keys_of(loader)
    assert sorted(keys) == ["val-0", "val-1", "val-2"]


def test_epochs_are_shuffled_differ_and_can_be_entered(data, epochs):
    orders = [[int(key.split("-")[1]) for keys, *_ in epoch for key in keys] for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert list(range(40)) != orders[0] != orders[1]
    with make(data) as loader:
        loader.set_epoch(2)
        assert_equal(recorded(loader), epochs[2])
        assert loader.epoch == 3
    with make(data, seed=1) as other:
        assert keys_of(other) != [key for keys, *_ in epochs[0] for key in keys]


@pytest.fixture
def short_segments(monkeypatch):
    """Segments of 8 samples at most, so that small epochs have several."""
    monkeypatch.setattr(order, "segments", partial(order.segments, most=8))


@pytest.mark.parametrize(
    ("samples", "world_size", "batch", "buffer", "cut"),
    [
        (13, 2, 3, 2048, 1.0),  # N % W ≠ 0, (N // W) % B = 0
        (17, 4, 2, 2048, 0.5),
        (40, 1, 4, 5, 1.0),  # the last batch of an epoch
        (40, 1, 4, 5, 0.2),  # the last batch of a segment
        (40, 1, 3, 1, 0.4),
        (60, 2, 9, 2048, 0.0),  # a batch larger than a segment
    ],
)
def test_before_and_after_a_cut_are_the_uninterrupted_stream(
    datasets, short_segments, samples, world_size, batch, buffer, cut
):
    """Three epochs, interrupted after the first batch (0), the last (1) or between, and resumed."""
    place = Placement(world_size - 1, world_size, threads=1)

    def make_one():
        return make(datasets(samples), batch, TrainView(12), placement=place, shuffle_buffer=buffer)

    with make_one() as whole:
        expected = [batch for _ in range(3) for batch in recorded(whole)]
        steps = len(whole)
    at = round(cut * (3 * steps - 1)) + 1  # batches given before the cut
    before = []
    with make_one() as first:
        while len(before) < at:
            for one in first:
                before.append((one.keys, one.labels.tolist(), one.images.clone()))
                if len(before) == at:
                    state = json.loads(json.dumps(first.state_dict()))
                    break
    with make_one() as second:
        assert second.load_state_dict(state) == 0
        assert (second.epoch, second.batch) == divmod(at, steps)
        after = [batch for _ in range(second.epoch, 3) for batch in recorded(second)]
    assert_equal(before + after, expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "seed was 0, now 5"),
        ({"batch_size": 5}, "global_batch was 8, now 5"),
        ({"placement": Placement(0, 2)}, "global_batch was 8, now 16"),
        ({"shuffle_buffer": 9}, "shuffle_buffer was 2048, now 9"),
        ({"view": TrainView(crop=12)}, "crop was 16, now 12"),
        ({"view": TrainView(16, augmentation="random-resized-crop")}, "augmentation was paper, now random"),
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
        (lambda state: state | {"content": state["content"] | {"dali": "1.0"}}, r"dali was 1\.0, now 2\."),
        (lambda state: state | {"dali": "?"}, "cannot be read"),
        (lambda state: {"epoch": 3}, "cannot be read"),
        (lambda state: {}, "cannot be read"),
    ],
)
def test_a_state_of_another_version_is_refused(data, change, message):
    with make(data) as loader, pytest.raises(UsageError, match=message):
        loader.load_state_dict(change(loader.state_dict()))


def test_other_processes_go_on_with_the_next_epoch(data):
    """Of 5 batches of 8 samples, two are read: 24 samples are skipped, and two ranks share epoch 1."""
    keys = []
    with make(data) as one:
        stream = iter(one)
        next(stream)
        next(stream)
        state = one.state_dict()
    for rank in (0, 1):
        with make(data, 4, placement=Placement(rank, 2)) as loader:
            assert loader.load_state_dict(state) == 24
            assert (loader.epoch, loader.batch) == (1, 0)
            keys += keys_of(loader)
            state_after = loader.state_dict()
    assert len(keys) == len(set(keys)) == 40
    with make(data) as again:
        assert again.load_state_dict(state_after) == 0  # between two epochs nothing is left out
        assert again.epoch == 2


def test_another_ranks_place_is_refused(data):
    with (
        make(data, 4, placement=Placement(0, 2)) as first,
        make(data, 4, placement=Placement(1, 2)) as second,
    ):
        next(iter(first))
        refused(lambda: second.load_state_dict(first.state_dict()), "is rank 0's, this is rank 1")
    refused(lambda: list(first), "this loader is closed")


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
        assert loader.state_dict()["epoch"] == 3


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


def test_batches_outlive_the_steps_and_the_loader(data):
    with make(data, view=TrainView(12)) as loader:
        kept = [(batch.images, batch.images.clone()) for batch in loader]
    assert all(torch.equal(image, copy) for image, copy in kept)


def test_neighbors_do_not_stay_neighbors(datasets):
    """Two of 1,000 samples that follow each other in one epoch are far apart in the next."""
    count = 1000
    with make(datasets(count, 8), 100, TrainView(8), shuffle_buffer=250) as loader:
        epochs = [np.array([int(key.split("-")[1]) for key in keys_of(loader)]) for _ in range(4)]
    for one, other in pairwise(epochs):
        place = np.empty(count, int)
        place[other] = np.arange(count)
        distance = np.abs(np.diff(place[one]))
        assert (distance == 1).mean() < 0.01  # 0.002 in a perfect shuffle
        assert np.median(distance) > 60  # 293 in a perfect shuffle
        assert abs(np.corrcoef(np.arange(count), place[one])[0, 1]) < 0.5


def test_closing_deletes_what_was_made(data, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with make(data) as loader:
        next(iter(loader))
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_every_pipeline_gives_its_memory_back(data, short_segments, monkeypatch):
    given_back = []
    monkeypatch.setattr("pipeline.loader.dali.segment.trim_heap", lambda: given_back.append(None))
    with make(data, 4) as loader:
        assert len(keys_of(loader)) == 40
        assert len(given_back) == 5  # of eight samples each


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle_buffer": -4}, "shuffle_buffer is -4, not 1 or more"),
        ({"view": TrainView(crop=17)}, "crop of 17 px"),
        ({"split": "test"}, "no split 'test', only train, val"),
        ({"placement": Placement(0, 6)}, "40 samples, fewer than one global batch of 48"),
    ],
)
def test_impossible_arguments_are_refused(data, options, message):
    refused(lambda: make(data, **options), message)
