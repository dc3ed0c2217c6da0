"""Each sample exactly as often as it should be, for every split of the work."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from synthetic import CLASSES, tiny_pictures, write_dataset

from pipeline import Dataset, EvalView, Loader, Placement, RunError, TrainView, UsageError

VIEW = TrainView(crop=16)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A function samples → dataset, each written once."""
    folder = tmp_path_factory.mktemp("datasets")
    made: dict[int, Dataset] = {}

    def get(samples):
        if samples not in made:
            pictures = tiny_pictures(samples)
            made[samples] = write_dataset(folder / str(samples), {"train": pictures, "val": pictures}, 16, 3)
        return made[samples]

    return get


def keys_of(loader):
    return [key for batch in loader for key in batch.keys]


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 40), world=st.integers(1, 8), batch=st.integers(1, 9), seed=st.integers(0, 3))
@example(samples=13, world=2, batch=3, seed=0)  # N % W ≠ 0 and (N // W) % B = 0
@example(samples=17, world=4, batch=2, seed=0)
@example(samples=8, world=8, batch=1, seed=0)
def test_training_shows_each_sample_at_most_once(datasets, samples, world, batch, seed):
    data = datasets(samples)
    if samples < world * batch:
        with pytest.raises(UsageError, match=f"{samples} samples, fewer than one global batch"):
            Loader(data, "train", VIEW, batch, placement=Placement(0, world))
        return
    loaders = [
        Loader(data, "train", VIEW, batch, placement=Placement(rank, world, threads=1), seed=seed, keys=True)
        for rank in range(world)
    ]
    for _ in range(3):
        epoch = [list(loader) for loader in loaders]
        expected = samples // (world * batch)
        assert [len(batches) for batches in epoch] == [expected] * world == [len(x) for x in loaders]
        sizes = {len(b.labels) for batches in epoch for b in batches}
        assert sizes == {batch}
        keys = [key for batches in epoch for b in batches for key in b.keys]
        assert len(keys) == len(set(keys)) == expected * world * batch


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 40), world=st.integers(1, 8), batch=st.integers(1, 9))
@example(samples=5, world=8, batch=2)  # more ranks than samples
@example(samples=9, world=4, batch=2)  # a rank's last batch is empty
def test_evaluation_shows_each_sample_exactly_once(datasets, samples, world, batch):
    data = datasets(samples)
    loaders = [
        Loader(data, "val", EvalView(crop=16), batch, placement=Placement(rank, world, threads=1), keys=True)
        for rank in range(world)
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


@settings(max_examples=12, deadline=None)
@given(samples=st.integers(4, 40), world=st.integers(1, 3), batch=st.integers(1, 4), cut=st.integers(1, 3))
def test_a_restored_loader_continues_tensor_for_tensor(datasets, samples, world, batch, cut):
    data = datasets(samples)
    if samples < world * batch:
        return
    for rank in range(world):
        place = Placement(rank, world, threads=1)
        with Loader(data, "train", TrainView(crop=12), batch, placement=place, keys=True) as whole:
            epochs, states = [], []
            for _ in range(5):
                states.append(whole.state_dict())
                epochs.append([(b.keys, b.images.clone()) for b in whole])
        with Loader(data, "train", TrainView(crop=12), batch, placement=place, keys=True) as again:
            again.load_state_dict(states[cut])
            for expected in epochs[cut:]:
                got = [(b.keys, b.images.clone()) for b in again]
                assert [keys for keys, _ in got] == [keys for keys, _ in expected]
                assert all(torch.equal(x, y) for (_, x), (_, y) in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "seed was 0, now 5"),
        ({"batch_size": 5}, "batch_size was 4, now 5"),
        ({"placement": Placement(0, 2)}, "world was 1, now 2"),
        ({"samples": 24}, "dataset was"),
    ],
)
def test_a_state_of_another_run_is_refused(datasets, change, named):
    settings = {"batch_size": 4, "samples": 40} | change
    with Loader(datasets(40), "train", VIEW, 4) as loader:
        state = loader.state_dict()
    data, batch = datasets(settings.pop("samples")), settings.pop("batch_size")
    with Loader(data, "train", VIEW, batch, **settings) as other, pytest.raises(UsageError, match=named):
        other.load_state_dict(state)


def test_an_abandoned_epoch_starts_over(datasets):
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        whole = [keys_of(loader) for _ in range(2)]
    with Loader(datasets(40), "train", VIEW, 8, keys=True) as loader:
        assert keys_of(loader) == whole[0]
        assert next(iter(loader)).keys == whole[1][:8]
        assert keys_of(loader) == whole[1]


def test_a_crop_larger_than_the_pictures_is_refused(datasets):
    with pytest.raises(UsageError, match="crop of 17 px"):
        Loader(datasets(8), "train", TrainView(crop=17), 2)


def test_an_unknown_split_names_the_known_ones(datasets):
    with pytest.raises(UsageError, match="no split 'test', only train, val"):
        Loader(datasets(8), "test", EvalView(crop=16), 2)


def test_a_damaged_sample_is_one_error(tmp_path):
    data = write_dataset(tmp_path / "d", {"train": tiny_pictures(8)}, 16, 1)
    tar = data.tars("train")[0]
    raw = bytearray(tar.read_bytes())
    start = raw.index(b"\xff\xd8\xff")
    raw[start : start + 64] = np.zeros(64, np.uint8).tobytes()
    tar.write_bytes(raw)
    with Loader(data, "train", VIEW, 4) as loader, pytest.raises(RunError, match=r"stopped in .*train"):
        list(loader)
