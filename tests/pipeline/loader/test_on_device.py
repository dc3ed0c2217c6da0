"""What a device cuts from whole decoded squares is what threads cut; here the device is the CPU."""

import pytest
import torch
from helpers.synthetic import photographs, write_dataset

from pipeline import EvalView, Loader, TrainView, color_noise
from pipeline.dataset.manifest import ImageFormat
from pipeline.loader.backend import OutputSettings
from pipeline.loader.threads.backend import ThreadBackend
from pipeline.loader.threads.on_device import cuts_on_device

SIZE, CROP = 64, 47


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = photographs(12, SIZE, SIZE)
    folder = tmp_path_factory.mktemp("squares") / "d"
    return write_dataset(folder, {"train": images, "val": images}, SIZE, 2)


def batches(data, view, output, device):
    split = "train" if isinstance(view, TrainView) else "val"
    with Loader(data, split, view, 5, half=output.half, channels_last=output.channels_last) as loader:
        if device is not None:
            settings = loader._shards, view, data.image, output, 5, loader.placement, device
            loader._maker = ThreadBackend(*settings)
        for _ in range(3):
            yield from loader


@pytest.mark.parametrize("output", [OutputSettings(), OutputSettings(half=True, channels_last=True)])
@pytest.mark.parametrize(
    ("view", "mean", "most"),
    [
        (EvalView("center", CROP), 0, 0),
        (EvalView("ten-crop", CROP), 0, 0),
        (TrainView(CROP), 0, 0),
        ("noise", 1e-4, 1e-3),
        # OpenCV interpolates with weights of 11 bits, and truncates.
        (TrainView(CROP, augmentation="random-resized-crop"), 0.15, 1),
        # Not made there: Pillow's filter, and areas.
        (EvalView("full-resize", CROP), 0, 0),
        (TrainView(24, augmentation="random-resized-crop"), 0, 0),
    ],
)
def test_batches_are_those_of_the_threads(data, view, mean, most, output):
    if view == "noise":
        noise = color_noise("source", data.statistics)
        view = TrainView(CROP, (120.5, 110.25, 100.125), (1.0, 2.0, 4.0), noise)
    if output.half and most == 1e-3:
        mean, most = 0.01, 0.125  # the distance of two numbers beyond 128
    seen = 0
    for ours, threads in zip(
        batches(data, view, output, torch.device("cpu")), batches(data, view, output, None), strict=True
    ):
        assert ours.keys == threads.keys
        assert (ours.images.dtype, ours.images.shape) == (threads.images.dtype, threads.images.shape)
        assert ours.images.stride() == threads.images.stride()
        difference = (ours.images.float() - threads.images.float()).abs()
        assert difference.max() <= most
        assert difference.mean() <= mean
        seen += 1
    assert seen == (6 if isinstance(view, TrainView) else 9)


@pytest.mark.parametrize(
    ("view", "mode", "there"),
    [
        (TrainView(224), "square", True),
        (TrainView(224), "aspect", False),
        (TrainView(224, augmentation="random-resized-crop"), "square", True),
        (TrainView(128, augmentation="random-resized-crop"), "square", False),
        (EvalView("ten-crop"), "square", True),
        (EvalView("ten-crop"), "original", False),
        (EvalView("full-resize"), "square", False),
    ],
)
def test_only_squares_that_need_no_filter_are_cut_on_the_device(view, mode, there):
    assert cuts_on_device(view, ImageFormat(256, mode, 95)) == there
