"""Training data of a run: the loader of each epoch, seeds, and resumption."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.training_runs import train_here

from pipeline import EvalView, Loader, Placement, UsageError
from trainer.data import LoaderOptions, RepeatedBatch, TrainData, noise
from trainer.distributed.env import DistEnv
from trainer.models.classifier import new_classifier
from trainer.recipe import Stage
from trainer.runs import checkpoint
from trainer.training.options import Debugging, TrainJob


@pytest.fixture
def recipe(tiny_recipe):
    stages = (Stage(epoch=1, lr_factor=0.5), Stage(epoch=2, color_noise="none"))
    return replace(tiny_recipe, color_noise="source", epochs=4, batch_size=30, stages=stages)


@pytest.fixture
def make_train_data(recipe, tiny_dataset):
    """A function that makes training data, closed at the end; keywords replace the default arguments."""
    made = []

    def make(**changes):
        torch.manual_seed(0)
        classifier = new_classifier(recipe, tiny_dataset)
        arguments = {"recipe": recipe, "batch_size": recipe.batch_size, "env": DistEnv()} | changes
        made.append(TrainData(dataset=tiny_dataset, classifier=classifier, **arguments))
        made[-1].classifier = classifier
        return made[-1]

    yield make
    for train_data in made:
        train_data.close()


def images(train_data, epoch):
    return torch.cat([batch.images for batch in train_data.epoch(epoch)])


def test_epochs_share_a_loader_until_the_noise_changes(make_train_data):
    train_data = make_train_data()
    first = train_data.epoch(0)
    assert train_data.classifier.divisor == 1.1
    assert train_data.epoch(1) is first  # a new learning rate needs no new loader
    second = train_data.epoch(2)
    assert second is not first
    assert train_data.epoch(3) is second
    assert train_data.classifier.divisor == 1.0


def test_noise_is_in_the_pixels_and_goes_with_its_stage(make_train_data):
    train_data = make_train_data()
    noisy = images(train_data, 0)
    list(train_data.epoch(1))
    plain = images(train_data, 2)
    assert torch.equal(plain, plain.round())  # the mean image is subtracted later: gray levels remain
    assert not torch.equal(noisy, noisy.round())


def test_epochs_differ_and_the_same_data_gives_them_again(make_train_data):
    one, other = make_train_data(), make_train_data()
    first = [images(one, epoch) for epoch in range(4)]
    second = [images(other, epoch) for epoch in range(4)]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[2], first[3])


@pytest.mark.parametrize(("finished", "begun"), [(1, 0), (1, 2), (2, 1), (3, 0)])
def test_restored_data_goes_on_as_if_never_stopped(make_train_data, finished, begun):
    """Three batches per epoch; the position is between two epochs or within one."""
    whole = make_train_data()
    for epoch in range(finished):
        list(whole.epoch(epoch))
    stream = iter(whole.epoch(finished))
    for _ in range(begun):
        next(stream)
    state = whole.state_dict()
    rest = [batch.images for batch in stream]
    expected = [images(whole, epoch) for epoch in range(finished + 1, 4)]
    resumed = make_train_data()
    resumed.load_state_dict(state, finished)
    assert torch.equal(images(resumed, finished), torch.cat(rest))
    for epoch, images_then in zip(range(finished + 1, 4), expected, strict=True):
        assert torch.equal(images(resumed, epoch), images_then)


def test_other_data_or_another_batch_is_refused(make_train_data, recipe):
    train_data = make_train_data()
    list(train_data.epoch(0))
    with pytest.raises(UsageError, match="global_batch was 30, now 15"):
        make_train_data(recipe=replace(recipe, batch_size=15)).load_state_dict(train_data.state_dict(), 1)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (LoaderOptions(decode_device="gpu"), "cpu", "--decode-device gpu, but these are CPU processes"),
        (LoaderOptions("threads", "gpu"), "gpu", "threads decode on the CPU: --backend threads says"),
        (LoaderOptions(decode_device="gpu"), "gpu", "threads decode on the CPU: DALI is not installed"),
    ],
)
def test_a_gpu_that_does_not_decode_is_refused(options, kind, message, monkeypatch):
    monkeypatch.setattr("trainer.data.has_dali", lambda: False)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 0))
    with pytest.raises(UsageError, match=message):
        options.choose(DistEnv(kind=kind))


@pytest.mark.parametrize(
    ("options", "dali", "backend", "gpu"),
    [
        (LoaderOptions(), True, "dali", 0),
        (LoaderOptions(), False, "threads", 0),
        (LoaderOptions("threads"), True, "threads", 0),
        (LoaderOptions(decode_device="cpu"), True, "dali", None),
    ],
)
def test_on_a_gpu_either_backend_leaves_the_batches_there(options, dali, backend, gpu, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 0))
    for module in ("trainer.data", "pipeline.loader.placement"):
        monkeypatch.setattr(f"{module}.has_dali", lambda: dali)
    choice = options.choose(DistEnv(kind="gpu"))
    assert (choice.backend, choice.placement.gpu) == (backend, gpu)


def test_dali_is_asked_for_where_it_is_not_installed(tiny_dataset, monkeypatch):
    monkeypatch.setattr("pipeline.loader.placement.has_dali", lambda: False)
    loader = partial(Loader, tiny_dataset, "val", EvalView(crop=64), 8, backend="dali")
    for ask in (partial(LoaderOptions("dali").choose, DistEnv()), loader):
        with pytest.raises(UsageError, match=r"needs DALI, which is not installed: .*\[cuda13\]"):
            ask()


def test_the_processes_ranks_and_threads_are_the_loaders():
    env = DistEnv(rank=3, world_size=4, local_rank=1, local_world_size=2)
    expected = Placement(3, 4, threads=5, workers=2, local_world_size=2)
    assert LoaderOptions(threads=5, workers=2).choose(env).placement == expected


def test_a_batch_larger_than_the_split_is_refused(make_train_data, recipe):
    with pytest.raises(UsageError, match="90 samples, fewer than one global batch of 91"):
        make_train_data(recipe=replace(recipe, batch_size=91)).epoch(0)


def test_an_epoch_is_as_long_as_the_datas(tiny_recipe):
    one = RepeatedBatch(noise(tiny_recipe, 4, 10, DistEnv()), 3)
    assert len(one) == 3
    batches = []
    for batch in one:
        batches.append((one.epoch, one.batch, batch))
    assert [(epoch, done) for epoch, done, _ in batches] == [(0, 1), (0, 2), (0, 3)]
    assert all(torch.equal(batch.images, batches[0][2].images) for *_, batch in batches)
    assert (one.epoch, one.batch) == (1, 0)


def test_noise_is_like_pixels_and_differs_between_ranks(tiny_recipe):
    plain = noise(tiny_recipe, 16, 10, DistEnv())
    assert plain.images.shape == (16, 3, 64, 64)
    assert plain.images.std().item() == pytest.approx(64, rel=0.02)
    divided = noise(replace(tiny_recipe, std="channel", channels_last=True), 16, 10, DistEnv(1, 2))
    assert divided.images.std().item() == pytest.approx(1, rel=0.02)
    assert divided.images.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(divided.labels, plain.labels)
    assert 0 <= int(plain.labels.min()) <= int(plain.labels.max()) < 10


def test_a_single_batch_is_learnt_by_heart(tiny_recipe, tiny_dataset, tmp_path):
    """The loss of alexnet_bn on one repeated batch falls to a tenth."""
    recipe = replace(tiny_recipe, width=0.1, epochs=5, batch_size=8)
    job = TrainJob(tiny_dataset.root, tmp_path / "run", recipe, debugging=Debugging(overfit_batch=True))
    rows = train_here(job).rows
    assert rows[-1].train_loss < 0.1 * rows[0].train_loss
    assert rows[-1].train_top1 == 1.0


def test_noise_trains_as_long_as_data_and_is_not_resumed(tiny_recipe, tiny_dataset, tmp_path):
    job = TrainJob(
        tiny_dataset.root, tmp_path / "r", replace(tiny_recipe, epochs=1), debugging=Debugging(synthetic=True)
    )
    assert train_here(job).rows[-1].steps == 2  # 90 images in batches of 32
    assert checkpoint.load(job.out / "last.pt")["one_batch"] == "--synthetic"
    with pytest.raises(UsageError, match="made with --synthetic, which is not resumed"):
        train_here(replace(job, resume="must", debugging=Debugging()))


def test_only_one_of_two_options_replaces_the_data():
    with pytest.raises(UsageError, match="--synthetic and --overfit-batch were both given"):
        Debugging(synthetic=True, overfit_batch=True)
