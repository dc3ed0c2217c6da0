"""The loader: each sample exactly as often as it should be, and exact resumption, on any number of ranks."""

import json
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.synthetic import CLASSES, tiny_images, write_dataset
from hypothesis import HealthCheck, example, given, settings, strategies as st

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


def keys_of(loader):
    return [key for batch in loader for key in batch.keys]


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 40), world_size=st.integers(1, 8), batch=st.integers(1, 9), seed=st.integers(0, 3)
)
@example(samples=13, world_size=2, batch=3, seed=0)  # N % W ≠ 0 and (N // W) % B = 0
@example(samples=17, world_size=4, batch=2, seed=0)
@example(samples=8, world_size=8, batch=1, seed=0)
def test_training_shows_each_sample_at_most_once(datasets, samples, world_size, batch, seed):
    data = datasets(samples)
    if samples < world_size * batch:
        with pytest.raises(UsageError, match=f"{samples} samples, fewer than one global batch"):
            Loader(data, "train", VIEW, batch, placement=Placement(0, world_size))
        return
    loaders = [
        Loader(
            data, "train", VIEW, batch, placement=Placement(rank, world_size, threads=1), seed=seed, keys=True
        )
        for rank in range(world_size)
    ]
    for _ in range(3):
        epoch = [list(loader) for loader in loaders]
        expected = samples // (world_size * batch)
        assert [len(batches) for batches in epoch] == [expected] * world_size == [len(x) for x in loaders]
        sizes = {len(b.labels) for batches in epoch for b in batches}
        assert sizes == {batch}
        keys = [key for batches in epoch for b in batches for key in b.keys]
        assert len(keys) == len(set(keys)) == expected * world_size * batch


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 40), world_size=st.integers(1, 8), batch=st.integers(1, 9))
@example(samples=5, world_size=8, batch=2)  # more ranks than samples
@example(samples=9, world_size=4, batch=2)  # a rank's last batch is empty
def test_evaluation_shows_each_sample_exactly_once(datasets, samples, world_size, batch):
    data = datasets(samples)
    loaders = [
        Loader(
            data, "val", EvalView(crop=16), batch, placement=Placement(rank, world_size, threads=1), keys=True
        )
        for rank in range(world_size)
    ]
    for _ in range(2):
        keys = [key for loader in loaders for key in keys_of(loader)]
        assert sorted(keys) == sorted(f"val-{k}" for k in range(samples))


def test_labels_are_the_stored_digits(datasets):
    with Loader(datasets(40), "val", EvalView(crop=16), 7, keys=True) as loader:
        for batch in loader:
            assert batch.labels.dtype == torch.int64
            assert batch.labels.tolist() == [int(key.split("-")[1]) % CLASSES for key in batch.keys]


def test_epochs_are_shuffled_and_differ(datasets):
    with Loader(datasets(40), "train", VIEW, 10, keys=True) as loader:
        first, second = keys_of(loader), keys_of(loader)
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != sorted(first, key=lambda key: int(key.split("-")[1]))


def test_one_seed_repeats_and_another_differs(datasets):
    def run(seed):
        with Loader(datasets(24), "train", TrainView(crop=12), 8, seed=seed, keys=True) as loader:
            return [(b.keys, b.images) for _ in range(2) for b in loader]

    a, b, c = run(1), run(1), run(2)
    assert [keys for keys, _ in a] == [keys for keys, _ in b] != [keys for keys, _ in c]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True))


@pytest.fixture
def short_segments(monkeypatch):
    """Segments of 8 samples at most, so that small epochs have several."""
    monkeypatch.setattr(order, "segments", partial(order.segments, most=8))


def recorded(loader):
    """Read an epoch as a list of (keys, labels, copy of the images)."""
    return [(batch.keys, batch.labels.tolist(), batch.images.clone()) for batch in loader]


def assert_equal(got, expected):
    assert [batch[:2] for batch in got] == [batch[:2] for batch in expected]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(got, expected, strict=True))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.integers(1, 60),
    world_size=st.integers(1, 8),
    batch=st.integers(1, 9),
    buffer=st.sampled_from([1, 5, 2048]),
    cut=st.floats(0, 1),
    data=st.data(),
)
@example(samples=13, world_size=2, batch=3, buffer=2048, cut=1.0, data=None)  # N % W ≠ 0, (N // W) % B = 0
@example(samples=17, world_size=4, batch=2, buffer=2048, cut=0.5, data=None)
@example(samples=40, world_size=1, batch=4, buffer=5, cut=1.0, data=None)  # the last batch of an epoch
@example(samples=40, world_size=1, batch=4, buffer=5, cut=0.2, data=None)  # the last batch of a segment
def test_before_and_after_a_cut_are_the_uninterrupted_stream(
    datasets, short_segments, samples, world_size, batch, buffer, cut, data
):
    """Three epochs, interrupted after any batch and resumed, give the same tensors as uninterrupted ones."""
    dataset = datasets(samples)
    if samples < world_size * batch:
        return
    rank = data.draw(st.integers(0, world_size - 1)) if data else world_size - 1

    def make():
        place = Placement(rank, world_size, threads=1)
        return Loader(
            dataset, "train", TrainView(12), batch, placement=place, shuffle_buffer=buffer, keys=True
        )

    with make() as whole:
        expected = [recorded(whole) for _ in range(3)]
        steps = len(whole)
    at = round(cut * (3 * steps - 1)) + 1  # batches given before the cut
    before = []
    with make() as first:
        for _ in range(math.ceil(at / steps)):
            for one in first:
                before.append((one.keys, one.labels.tolist(), one.images.clone()))
                if len(before) == at:
                    state = json.loads(json.dumps(first.state_dict()))
                    break
    with make() as second:
        assert second.load_state_dict(state) == 0
        assert (second.epoch, second.batch) == divmod(at, steps)
        after = [batch for _ in range(second.epoch, 3) for batch in recorded(second)]
    assert_equal(before + after, [batch for epoch in expected for batch in epoch])


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.integers(1, 150),
    world_size=st.integers(1, 8),
    batch=st.integers(1, 20),
    most=st.sampled_from([8, 32, 65536]),
    cut=st.floats(0, 1),
)
def test_cuts_of_many_kinds(datasets, monkeypatch, samples, world_size, batch, most, cut):
    """The same on all ranks together; over the ranks, no sample is shown twice."""
    dataset = datasets(samples)
    if samples < world_size * batch:
        return
    with monkeypatch.context() as patch:
        patch.setattr(order, "segments", partial(order.segments, most=most))
        places = [Placement(rank, world_size, threads=1) for rank in range(world_size)]

        def make():
            return [Loader(dataset, "train", TrainView(12), batch, placement=p, keys=True) for p in places]

        streams, states = [], []
        for loader in make():
            with loader:
                at = round(cut * (3 * len(loader) - 1)) + 1
                stream = []
                for _ in range(3):
                    for one in loader:
                        stream.append((one.keys, one.labels.tolist(), one.images.clone()))
                        if len(stream) == at:
                            states.append(loader.state_dict())
                streams.append(stream)
        for loader, stream, state in zip(make(), streams, states, strict=True):
            with loader:
                loader.load_state_dict(state)
                after = [batch for _ in range(loader.epoch, 3) for batch in recorded(loader)]
            assert_equal(after, stream[at:])
    steps = samples // (world_size * batch)
    for epoch in range(3):
        keys = [key for s in streams for one in s[epoch * steps : (epoch + 1) * steps] for key in one[0]]
        assert len(keys) == len(set(keys)) == steps * world_size * batch


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "seed was 0, now 5"),
        ({"batch_size": 5}, "global_batch was 4, now 5"),
        ({"placement": Placement(0, 2)}, "global_batch was 4, now 8"),
        ({"shuffle_buffer": 9}, "shuffle_buffer was 2048, now 9"),
        ({"view": TrainView(crop=12)}, "crop was 16, now 12"),
        ({"view": TrainView(16, augmentation="random-resized-crop")}, "augmentation was paper, now random"),
        ({"view": TrainView(16, (1.0, 2.0, 3.0))}, "colors was"),
        ({"samples": 24}, "dataset was .*samples was 40, now 24"),
    ],
)
def test_a_state_of_another_run_is_refused(datasets, change, named):
    settings = {"batch_size": 4, "samples": 40, "view": VIEW} | change
    with Loader(datasets(40), "train", VIEW, 4) as loader:
        state = loader.state_dict()
    data, view, batch = datasets(settings.pop("samples")), settings.pop("view"), settings.pop("batch_size")
    with Loader(data, "train", view, batch, **settings) as other, pytest.raises(UsageError, match=named):
        other.load_state_dict(state)


def test_another_version_of_dali_is_refused(datasets):
    with Loader(datasets(40), "train", VIEW, 4) as loader:
        state = loader.state_dict()
        state["content"]["dali"] = "1.0"
        with pytest.raises(UsageError, match=r"dali was 1\.0, now 2\."):
            loader.load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"epoch": 3}, None])
def test_a_state_that_is_none_is_one_line(datasets, state):
    with Loader(datasets(40), "train", VIEW, 4) as loader, pytest.raises(UsageError, match="cannot be read"):
        loader.load_state_dict(state or loader.state_dict() | {"dali": "?"})


def test_other_processes_go_on_with_the_next_epoch(datasets):
    """Of 5 batches of 8 samples, two are read: 24 samples are skipped, and two ranks share epoch 1."""
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as one:
        stream = iter(one)
        next(stream)
        next(stream)
        state = one.state_dict()
    ranks = [Loader(datasets(40), "train", VIEW, 4, placement=Placement(r, 2), keys=True) for r in (0, 1)]
    assert [loader.load_state_dict(state) for loader in ranks] == [24, 24]
    assert [(loader.epoch, loader.batch) for loader in ranks] == [(1, 0)] * 2
    keys = [key for loader in ranks for key in keys_of(loader)]
    assert len(keys) == len(set(keys)) == 40
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as again:
        again.load_state_dict(ranks[0].state_dict())  # between two epochs nothing is left out
        assert again.epoch == 2
    for loader in ranks:
        loader.close()


def test_any_epoch_can_be_entered(datasets):
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        epochs = [keys_of(loader) for _ in range(4)]
        loader.set_epoch(2)
        assert keys_of(loader) == epochs[2]
        assert loader.epoch == 3


def test_a_state_after_leaving_the_loop_is_of_that_batch(datasets):
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        whole = keys_of(loader)
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        for number, _ in enumerate(loader):
            if number == 2:
                break
        state = loader.state_dict()
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert keys_of(loader) == whole[24:]


def test_batches_outlive_the_steps_and_the_loader(datasets):
    with Loader(datasets(40), "train", TrainView(12), 8) as loader:
        kept = [(batch.images, batch.images.clone()) for batch in loader]
        state = loader.state_dict()
        assert state["epoch"] == 1
    assert all(torch.equal(image, copy) for image, copy in kept)


def test_neighbors_do_not_stay_neighbors(datasets):
    """Two of 4,000 samples that follow each other in one epoch are far apart in the next."""
    with Loader(datasets(4000, 8), "train", TrainView(8), 100, shuffle_buffer=1000, keys=True) as loader:
        epochs = [np.array([int(key.split("-")[1]) for key in keys_of(loader)]) for _ in range(4)]
    for one, other in pairwise(epochs):
        place = np.empty(4000, int)
        place[other] = np.arange(4000)
        distance = np.abs(np.diff(place[one]))
        assert (distance == 1).mean() < 0.01  # 0.0005 in a perfect shuffle
        assert np.median(distance) > 250  # 1,170 in a perfect shuffle
        assert abs(np.corrcoef(np.arange(4000), place[one])[0, 1]) < 0.5


def test_an_abandoned_epoch_starts_over(datasets):
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        whole = [keys_of(loader) for _ in range(2)]
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        assert keys_of(loader) == whole[0]
        assert next(iter(loader)).keys == whole[1][:8]
        assert keys_of(loader) == whole[1]


def test_a_new_iteration_ends_an_older_one(datasets):
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        older = iter(loader)
        next(older)
        newer = iter(loader)
        first = next(newer).keys
        with pytest.raises(RuntimeError, match="another iteration of this loader has begun"):
            next(older)
        assert loader.batch == 1
        assert len([first, *newer]) == 5
        assert loader.epoch == 1


def test_as_many_batches_as_there_are_make_an_epoch(datasets):
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        epochs = [[b.keys for _, b in zip(range(len(loader)), loader, strict=False)] for _ in range(3)]
        assert loader.state_dict()["epoch"] == 3
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        assert epochs == [[b.keys for b in loader] for _ in range(3)]


def test_a_loaded_place_stays_though_an_iteration_is_alive(datasets):
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        stream = iter(loader)
        next(stream)
        state = loader.state_dict()
        next(stream)
        next(stream)
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        with pytest.raises(RuntimeError, match="another iteration"):
            next(stream)
        assert len(list(loader)) == 4


def test_another_ranks_place_is_refused(datasets):
    ranks = [Loader(datasets(40), "train", VIEW, 4, placement=Placement(r, 2)) for r in (0, 1)]
    next(iter(ranks[0]))
    with pytest.raises(UsageError, match="is rank 0's, this is rank 1"):
        ranks[1].load_state_dict(ranks[0].state_dict())
    for loader in ranks:
        loader.close()
    with pytest.raises(UsageError, match="this loader is closed"):
        list(ranks[0])


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": -4}, {"shuffle_buffer": 0}])
def test_sizes_below_one_are_refused(datasets, wrong):
    with pytest.raises(UsageError, match="give at least 1"):
        Loader(datasets(40), "train", VIEW, **({"batch_size": 4} | wrong))


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2)])
def test_a_rank_beyond_the_world_is_refused(rank, world_size):
    with pytest.raises(UsageError, match="ranks go from 0 to 1"):
        Placement(rank, world_size)


def test_closing_deletes_what_was_made(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Loader(datasets(40), "train", VIEW, 8) as loader:
        next(iter(loader))
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_every_pipeline_gives_its_memory_back(datasets, short_segments, monkeypatch):
    given_back = []
    monkeypatch.setattr("pipeline.loader.dali.segment.trim_heap", lambda: given_back.append(None))
    with Loader(datasets(40), "train", VIEW, 4) as loader:
        for _ in loader:
            pass
        assert len(given_back) == 5  # of eight samples each


def test_a_crop_larger_than_the_images_is_refused(datasets):
    with pytest.raises(UsageError, match="crop of 17 px"):
        Loader(datasets(8), "train", TrainView(crop=17), 2)


def test_an_unknown_split_names_the_known_ones(datasets):
    with pytest.raises(UsageError, match="no split 'test', only train, val"):
        Loader(datasets(8), "test", EvalView(crop=16), 2)
