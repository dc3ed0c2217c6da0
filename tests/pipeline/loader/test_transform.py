"""A user's transform of images on the thread backend."""

import functools

import numpy as np
import pytest
from helpers.folders import draw_image, refused
from helpers.synthetic import tiny_images, write_dataset

from pipeline import EvalView, RunError, TrainView, open_loader

SIZE, CROP = 48, 32


def number(image, generator):
    """Give every pixel a number that the generator draws, and every image another size."""
    height, width = generator.integers(SIZE, 2 * SIZE, 2)
    return np.full((height, width, 3), generator.integers(0, 256, 3), np.uint8)


def unchanged(image, generator):
    return image


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transform") / "d"
    return write_dataset(
        folder, {"train": tiny_images(40, SIZE), "val": tiny_images(9, SIZE)}, SIZE, shards=3
    )


def numbers(data, split, view, epoch, **options):
    """Position → the number that the transform drew."""
    found = {}
    with open_loader(data, split, view=view, transform=number, seed=1, **options) as loader:
        loader.set_epoch(epoch)
        for batch in loader:
            colors = batch.images.flatten(2)
            assert (colors == colors[:, :, :1]).all()
            found |= zip(batch.positions.tolist(), map(tuple, colors[:, :, 0].tolist()), strict=True)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 1, "global_batch": 8},
        {"threads": 3, "global_batch": 20},
        {"threads": 2, "global_batch": 8, "rank": 1, "world_size": 2},
        pytest.param({"threads": 2, "global_batch": 8, "workers": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_its_numbers_depend_on_seed_epoch_and_position_alone(data, options):
    expected = numbers(data, "train", EvalView("center", CROP), 2, global_batch=40)
    assert len(set(expected.values())) == 40
    found = numbers(data, "train", TrainView(CROP, augmentation="random-resized-crop"), 2, **options)
    assert len(found) >= 20
    assert found == {position: expected[position] for position in found}
    others = numbers(data, "train", EvalView("center", CROP), 1, global_batch=40)
    assert all(others[position] != color for position, color in expected.items())


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("square", (SIZE, SIZE)), ("aspect", (SIZE, SIZE + 13)), ("original", (SIZE + 31, SIZE + 7))],
)
@pytest.mark.parametrize(
    "view",
    [
        TrainView(CROP, (1.0, 2.0, 3.0)),
        TrainView(CROP, augmentation="random-resized-crop"),
        *(EvalView(name, CROP) for name in ("center", "ten-crop", "full-resize")),
    ],
    ids=str,
)
def test_images_that_it_does_not_change_are_cut_as_without_it(tmp_path, mode, shape, view):
    images = [draw_image(number, *shape) for number in range(6)]
    found = write_dataset(tmp_path / "d", {"train": images}, SIZE, mode=mode)
    batches = []
    for transform in (None, unchanged):
        with open_loader(found, "train", global_batch=3, view=view, transform=transform) as loader:
            batches.append(np.concatenate([batch.images.numpy() for batch in loader]))
    np.testing.assert_array_equal(*batches)


@pytest.mark.parametrize("name", ["center", "ten-crop"])
def test_the_view_cuts_what_comes_out(data, name):
    """A center crop and the corners of the center square of an image of another size."""
    gradient = np.broadcast_to(np.arange(80, dtype=np.uint8)[None, :, None], (60, 80, 3))
    view = EvalView(name, CROP)
    with open_loader(data, "val", global_batch=9, view=view, transform=lambda *_: gradient) as loader:
        images = next(iter(loader)).images
    left = images.reshape(-1, 3, CROP, CROP)[:, 0, 0, 0].tolist()
    ten = [10, 38, 10, 38, 24]
    assert left == [24] * 9 if name == "center" else [*ten, *(one + CROP - 1 for one in ten)] * 9


def fails(image, generator):
    raise KeyError("no\nsuch thing")


@pytest.mark.parametrize(
    ("transform", "problem"),
    [
        (fails, r"KeyError: .no.nsuch thing. \(.*test_transform.py, line \d+\)"),
        (lambda image, _: image[:9], "it returned 48x9 pixels, which do not fit a crop of 32"),
        (
            lambda image, _: image[:0],
            r"it returned uint8 \(0, 48, 3\) instead of an array, uint8 \(H, W, 3\)",
        ),
        (lambda image, _: image / 2, r"it returned float64 \(48, 48, 3\) instead"),
        (lambda image, _: image[..., 0], r"it returned uint8 \(48, 48\) instead"),
        (lambda image, _: None, "it returned NoneType instead"),
    ],
)
def test_what_fails_names_the_sample(data, transform, problem):
    view = EvalView("center", CROP)
    with open_loader(data, "val", global_batch=4, view=view, transform=transform) as loader:
        expected = f"val-000000.tar: the transform failed for the sample val-0: {problem}"
        with pytest.raises(RunError, match=expected) as raised:
            list(loader)
    assert "\n" not in str(raised.value)
    if transform is fails:
        assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"backend": "dali"}, "DALI calls no transform; choose the backend threads"),
        ({"workers": 1, "transform": lambda *_: None}, "define it at the top of a module, or set workers=0"),
    ],
)
def test_where_it_cannot_be_called_it_is_refused(data, options, part):
    options = {"global_batch": 4, "view": EvalView("center", CROP), "transform": number} | options

    def load():
        with open_loader(data, "val", **options) as loader:
            list(loader)

    refused(load, part)


def test_a_state_of_another_transform_is_refused(data):
    options = {"global_batch": 4, "view": TrainView(CROP)}
    with open_loader(data, "train", transform=number, **options) as one:
        state = one.state_dict()
        one.load_state_dict(state)
    for transform in (None, unchanged, functools.partial(number)):
        with open_loader(data, "train", transform=transform, **options) as other:
            refused(lambda other=other: other.load_state_dict(state), "transform was number, now ")
