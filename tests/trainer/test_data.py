"""Each epoch's loader, its seeds, and its place in a resumed run."""

from dataclasses import replace

import pytest
import torch

from pipeline import Placement, UsageError
from trainer.data import Feed, Feeding
from trainer.distributed.env import World
from trainer.models.classifier import new_classifier
from trainer.recipe import Stage


@pytest.fixture
def recipe(tiny_recipe):
    stages = (Stage(epoch=1, rate_factor=0.5), Stage(epoch=2, colour_noise="none"))
    return replace(tiny_recipe, colour_noise="source", epochs=4, stages=stages)


@pytest.fixture
def make_feed(recipe, tiny_dataset):
    """Make feeds that are closed in the end; keywords replace the defaults."""
    feeds = []

    def make(**changes):
        torch.manual_seed(0)
        classifier = new_classifier(recipe, tiny_dataset)
        arguments = {"recipe": recipe, "batch_size": 30, "world": World()} | changes
        feeds.append(Feed(dataset=tiny_dataset, classifier=classifier, **arguments))
        feeds[-1].classifier = classifier
        return feeds[-1]

    yield make
    for feed in feeds:
        feed.close()


def images(feed, epoch):
    return torch.cat([batch.images for batch in feed.epoch(epoch)])


def test_epochs_share_a_loader_until_the_noise_changes(make_feed):
    feed = make_feed()
    first = feed.epoch(0)
    assert feed.classifier.divisor == 1.1
    assert feed.epoch(1) is first  # a change of rate is none of the loader's
    second = feed.epoch(2)
    assert second is not first
    assert feed.epoch(3) is second
    assert feed.classifier.divisor == 1.0


def test_noise_is_in_the_pixels_and_goes_with_its_stage(make_feed):
    feed = make_feed()
    noisy = images(feed, 0)
    list(feed.epoch(1))
    plain = images(feed, 2)
    assert torch.equal(plain, plain.round())  # the mean image is subtracted later: grey levels remain
    assert not torch.equal(noisy, noisy.round())


def test_epochs_differ_and_the_same_feed_gives_them_again(make_feed):
    one, other = make_feed(), make_feed()
    first = [images(one, epoch) for epoch in range(4)]
    second = [images(other, epoch) for epoch in range(4)]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[2], first[3])


@pytest.mark.parametrize("finished", [1, 2, 3])
@pytest.mark.parametrize("begun", [0, 1, 2])
def test_a_restored_feed_goes_on_as_one_never_stopped(make_feed, finished, begun):
    """Three batches an epoch; the place is between two epochs, or within one."""
    whole = make_feed()
    for epoch in range(finished):
        list(whole.epoch(epoch))
    stream = iter(whole.epoch(finished))
    for _ in range(begun):
        next(stream)
    torch.manual_seed(77)
    state = whole.rank_state()
    rest = [batch.images.clone() for batch in stream]
    expected = [images(whole, epoch) for epoch in range(finished + 1, 4)]
    torch.manual_seed(77)
    drawn = torch.rand(3)
    resumed = make_feed()
    assert resumed.restore(state, finished) == 0
    resumed.restore_generators(state)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(images(resumed, finished), torch.cat(rest))
    for epoch, images_then in zip(range(finished + 1, 4), expected, strict=True):
        assert torch.equal(images(resumed, epoch), images_then)


def test_other_data_or_another_batch_is_refused(make_feed):
    feed = make_feed()
    list(feed.epoch(0))
    state = feed.rank_state()
    with pytest.raises(UsageError, match="global_batch was 30, now 15"):
        make_feed(batch_size=15).restore(state, 1)


def test_other_processes_leave_out_what_was_begun(make_feed):
    feed = make_feed()
    list(feed.epoch(0))
    between = feed.rank_state()
    next(iter(feed.epoch(1)))
    begun = feed.rank_state()
    two = {"world": World(rank=1, size=2), "batch_size": 15}
    assert make_feed(**two).restore(between, 1) == 0
    assert make_feed(**two).restore(begun, 1) == 60


@pytest.mark.parametrize("device", ["gpu", "hybrid"])
def test_processes_on_the_cpu_have_no_gpu_to_augment_on(device):
    with pytest.raises(UsageError, match=f"--placement {device} makes batches on a GPU"):
        Feeding(device).placement(World())


def test_feeding_says_where_and_with_how_many_threads():
    world = World(rank=3, size=4, local_rank=1, local_size=2)
    assert Feeding("cpu", 5).placement(world) == Placement(3, 4, "cpu", 1, 5, 2)
    assert Feeding().placement(world).device == "cpu"


def test_ranks_get_different_pictures(make_feed):
    ranks = [make_feed(world=World(rank=rank, size=2), batch_size=45) for rank in range(2)]
    batches = [images(feed, 2) for feed in ranks]
    assert [len(batch) for batch in batches] == [45, 45]
    assert not torch.equal(*batches)


def test_a_batch_larger_than_the_split_is_refused(make_feed):
    with pytest.raises(UsageError, match="90 samples, fewer than one global batch of 91"):
        make_feed(batch_size=91).epoch(0)
