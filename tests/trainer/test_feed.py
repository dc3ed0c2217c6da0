"""Each epoch's loader, its seeds, and its place in a resumed run."""

from dataclasses import replace

import pytest
import torch

from pipeline import UsageError
from trainer.classifier import new_classifier
from trainer.distributed import World
from trainer.feed import Feed
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
        arguments = {"recipe": recipe, "batch_size": 30, "world": World(), "reseeded": 0} | changes
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
def test_a_restored_feed_goes_on_as_one_never_stopped(make_feed, finished):
    whole = make_feed()
    for epoch in range(finished):
        list(whole.epoch(epoch))
    torch.manual_seed(77)
    state = whole.rank_state()
    expected = [images(whole, epoch) for epoch in range(finished, 4)]
    drawn = torch.rand(3)
    resumed = make_feed()
    resumed.restore(state, finished)
    resumed.restore_generators(state)
    assert torch.equal(torch.rand(3), drawn)
    for epoch, images_then in zip(range(finished, 4), expected, strict=True):
        assert torch.equal(images(resumed, epoch), images_then)


def test_reseeding_gives_other_batches_and_its_state_restores(make_feed):
    before, after = make_feed(), make_feed(reseeded=2)
    assert not torch.equal(images(before, 2), images(after, 2))
    state = after.rank_state()
    expected = images(after, 3)
    resumed = make_feed(reseeded=2)
    resumed.restore(state, 3)
    assert torch.equal(images(resumed, 3), expected)
    with pytest.raises(UsageError, match="seed was"):
        make_feed().restore(state, 3)


def test_another_batch_size_or_place_is_refused(make_feed):
    feed = make_feed()
    list(feed.epoch(0))
    state = feed.rank_state()
    with pytest.raises(UsageError, match="batch_size was 30, now 15"):
        make_feed(batch_size=15).restore(state, 1)
    with pytest.raises(UsageError, match="world was 1, now 2"):
        make_feed(world=World(rank=0, size=2)).restore(state, 1)


def test_ranks_get_different_pictures(make_feed):
    ranks = [make_feed(world=World(rank=rank, size=2), batch_size=45) for rank in range(2)]
    batches = [images(feed, 2) for feed in ranks]
    assert [len(batch) for batch in batches] == [45, 45]
    assert not torch.equal(*batches)


def test_a_batch_larger_than_the_split_is_refused(make_feed):
    with pytest.raises(UsageError, match="90 samples, fewer than one global batch of 91"):
        make_feed(batch_size=91).epoch(0)
