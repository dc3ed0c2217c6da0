"""Both backends against an independent reference: Pillow decodes, NumPy crops, flips and adds noise."""

import re

import numpy as np
import pytest
from helpers.reference import crops, stored
from helpers.synthetic import gradient, photographs, write_dataset
from PIL import Image
from scipy import stats

from pipeline import EvalView, Loader, Placement, TrainView, color_noise
from pipeline.dataset.manifest import ImageFormat
from pipeline.images.codec import resize_shorter
from pipeline.loader.backend import OutputSettings

CROP, SIZE = 48, 64
MEAN = (120.5, 110.25, 100.125)


@pytest.fixture(params=["threads", pytest.param("dali", marks=pytest.mark.dali)])
def backend(request):
    return request.param


def pixels_of(dataset, split):
    """Decode a split's images with Pillow: key → float64 (H, W, 3)."""
    return {sample.key: sample.pixels.astype(np.float64) for sample in stored(dataset, split)}


def pairs(loader):
    """Read an epoch as pairs of key and image, float64 (…, S, S, 3)."""
    for batch in loader:
        yield from zip(batch.keys, batch.images.movedim(-3, -1).double().numpy(), strict=True)


def find_crop(image, seen, crop):
    """Find top, left and flip of the crop that equals `seen` but for a shift per channel, and the shift."""
    rows, columns = np.random.default_rng(0).integers(0, crop, (2, 40))
    free_y, free_x = image.shape[0] - crop, image.shape[1] - crop
    best = (np.inf,)
    for flip in (False, True):
        probe = seen[rows, crop - 1 - columns if flip else columns]
        for top in range(free_y + 1):
            for left in range(free_x + 1):
                difference = probe - image[top + rows, left + columns]
                spread = np.ptp(difference, axis=0).max()
                if spread < best[0]:
                    best = (spread, top, left, flip, difference.mean(axis=0))
    return best[1:]


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    images = photographs(6, SIZE, SIZE)
    return write_dataset(tmp_path_factory.mktemp("fields") / "data", {"train": images}, SIZE)


@pytest.mark.parametrize(("kind", "channels_last"), [("none", False), ("paper", True), ("source", False)])
def test_training_tensors_equal_the_reference(fields, kind, channels_last, backend):
    noise = color_noise(kind, fields.statistics)
    std = np.array([1.0, 2.0, 4.0])
    images = pixels_of(fields, "train")
    view = TrainView(CROP, MEAN, tuple(std), noise)
    with Loader(fields, "train", view, 3, channels_last=channels_last, backend=backend) as loader:
        batches = list(loader)
    assert len(batches) == 2
    for batch in batches:
        assert batch.images.shape == (3, 3, CROP, CROP)
        assert batch.images.permute(0, 2, 3, 1).is_contiguous() == channels_last
    for key, image in pairs(batches):
        gray = image * std * (noise.divisor if noise else 1.0) + MEAN  # back to gray levels, with the noise
        top, left, flip, shift = find_crop(images[key], gray, CROP)
        crop = images[key][top : top + CROP, left : left + CROP]
        np.testing.assert_allclose(gray, (crop[:, ::-1] if flip else crop) + shift, atol=1e-3)
        if noise is None:
            np.testing.assert_allclose(shift, 0, atol=1e-3)
        else:
            alpha = np.linalg.solve(noise.mixing.astype(np.float64), shift)
            assert np.abs(alpha).max() < 6, "not a draw of N(0, 1)"


def draws(dataset, epochs, crop=CROP, scale=1, crop_group=1, **options):
    """Measure left, top and flip of every sample's crop over some epochs; int (N, 3).

    The images are gradients: red is x and green is y, in units of `scale` loaded pixels.
    """
    found = []
    with Loader(dataset, "train", TrainView(crop, crop_group=crop_group), 100, **options) as loader:
        for batch in (batch for _ in range(epochs) for batch in loader):
            red = batch.images[:, 0]
            corners = scale * (batch.images[:, :2].mean(dim=(2, 3)) + 0.5) - crop / 2
            assert (corners - corners.round()).abs().max() < 0.3
            flip = red[:, :, 0].mean(dim=1) > red[:, :, -1].mean(dim=1)
            found.append(np.column_stack([corners.round(), flip]))
    return np.concatenate(found).astype(int)


@pytest.mark.parametrize(
    ("height", "width", "mode", "scale", "crop"),
    [
        (64, 64, "square", 1, CROP),
        (64, 90, "aspect", 1, CROP),
        (90, 64, "aspect", 1, CROP),
        (64, 80, "original", 2, 112),  # images are stored at half the size
        (80, 64, "original", 2, 112),
    ],
)
def test_crops_and_flips_are_uniform(tmp_path, height, width, mode, scale, crop):
    images, size = [gradient(height, width)] * 200, 64 * scale
    data = write_dataset(tmp_path / "d", {"train": images}, size, mode=mode)
    found = draws(data, 10, crop, scale)
    assert len(found) == 2000
    for axis, side in ((0, width), (1, height)):
        counts = np.bincount(found[:, axis], minlength=scale * side - crop + 1)
        assert len(counts) == scale * side - crop + 1
        assert stats.chisquare(counts).pvalue > 1e-3  # rounding from 0..1 would halve both ends
    assert stats.binomtest(int(found[:, 2].sum()), len(found)).pvalue > 1e-3
    # axes and flips are independent of each other
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.08


def test_groups_of_a_global_batch_are_cropped_and_flipped_alike(tmp_path, backend):
    """As in the released code, on any number of processes: here four, whose slices of 25 cut the groups."""
    data = write_dataset(tmp_path / "d", {"train": [gradient(64, 64)] * 200}, 64)
    options = {"crop_group": 32, "backend": backend}
    ranks = [draws(data, 2, placement=Placement(rank, 4, threads=1), **options) for rank in range(4)]
    batches = np.concatenate([found.reshape(4, 25, 3) for found in ranks], axis=1)
    groups = [batch[at : at + 32] for batch in batches for at in (0, 32, 64, 96)]
    assert all((group == group[0]).all() for group in groups)
    assert len({tuple(group[0]) for group in groups}) > 12


@pytest.mark.parametrize("kind", ["paper", "source"])
def test_color_noise_is_normal(tmp_path, kind):
    rng = np.random.default_rng(1)
    flat = [np.full((16, 16, 3), c, np.uint8) for c in rng.integers(60, 200, (200, 1, 1, 3))]
    data = write_dataset(tmp_path / "d", {"train": flat}, 16)
    noise = color_noise(kind, data.statistics)
    colors = {key: pixels.mean(axis=(0, 1)) for key, pixels in pixels_of(data, "train").items()}
    with Loader(data, "train", TrainView(16, noise=noise), 100) as loader:
        shifts = [
            image.mean(axis=(0, 1)) * noise.divisor - colors[key]
            for _ in range(5)
            for key, image in pairs(loader)
        ]
    alphas = np.linalg.solve(noise.mixing.astype(np.float64), np.transpose(shifts))
    assert alphas.shape == (3, 1000)
    for row in alphas:
        assert stats.kstest(row, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(alphas) - np.eye(3)).max() < 0.1


def center_square(image, size, backend):
    """Scale an image's shorter side to `size`, unless it is that, and cut the center square.

    DALI scales linearly, as Pillow does; threads scale as `alexnet-prep shard --keep-aspect` does.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    target = (round(width * size / shorter), round(height * size / shorter))
    if backend == "threads":
        scaled = resize_shorter(image.astype(np.uint8), size)
    else:
        scaled = Image.fromarray(image.astype(np.uint8)).resize(target, Image.Resampling.BILINEAR)
    top, left = (target[1] - size) // 2, (target[0] - size) // 2
    return np.asarray(scaled, np.float64)[top : top + size, left : left + size]


SHAPES = {
    "square": [(64, 64)] * 4,
    "aspect": [(64, 97), (90, 64), (64, 97)],
    # Larger than twice the loaded size, equal to it, and smaller.
    "original": [(300, 431), (260, 170), (64, 64), (64, 99), (41, 30), (20, 333), (128, 128), (65, 64)],
}


@pytest.fixture(scope="module", params=SHAPES)
def noisy(request, tmp_path_factory):
    """Noisy images of the shapes that a mode stores."""
    rng = np.random.default_rng(5)
    images = [
        np.clip(photographs(1, *shape, k)[0] + rng.normal(0, 12, (*shape, 3)), 0, 255).astype(np.uint8)
        for k, shape in enumerate(SHAPES[request.param])
    ]
    folder = tmp_path_factory.mktemp(request.param) / "data"
    return write_dataset(folder, {"train": images, "val": images}, SIZE, mode=request.param)


def test_evaluation_views_equal_slices(noisy, backend):
    """Only images of original size are scaled, where Pillow rounds to gray levels between the two axes."""
    images, crop = pixels_of(noisy, "val"), 57
    views = [EvalView(name, crop) for name in ("center", "ten-crop")]
    one, ten = (Loader(noisy, "val", view, 3, backend=backend) for view in views)
    with one, ten:
        found = list(zip(pairs(one), pairs(ten), strict=True))
    assert len(found) == len(images)
    for (key, center), (same_key, many) in found:
        assert key == same_key
        expected = crops(center_square(images[key], SIZE, backend), crop, "ten-crop").transpose(0, 2, 3, 1)
        difference = np.abs(many - expected)
        # Threads, like preparation, let libjpeg halve what is more than twice as large.
        most = {"threads": 16, "dali": 2}[backend] if noisy.image.mode == "original" else 1e-3
        assert difference.max() <= most
        assert difference.mean() < most / 8
        np.testing.assert_array_equal(many[5:], many[:5, :, ::-1])
        # DALI scales just the window that it cuts, and may round another way.
        np.testing.assert_allclose(center, many[4], atol=noisy.image.mode == "original")


@pytest.mark.parametrize("crop", [48, 80])
def test_full_resize_is_the_whole_image_squeezed(noisy, crop, backend):
    images = pixels_of(noisy, "val")
    with Loader(noisy, "val", EvalView("full-resize", crop), 2, backend=backend) as loader:
        for key, image in pairs(loader):
            whole = Image.fromarray(images[key].astype(np.uint8))
            expected = np.asarray(whole.resize((crop, crop), Image.Resampling.BILINEAR), np.float64)
            difference = np.abs(image - expected)
            assert difference.max() <= 2
            assert difference.mean() < 0.5


def test_float16_is_the_rounded_float32(fields, backend):
    view = TrainView(CROP, MEAN)
    full, half = (Loader(fields, "train", view, 6, half=half, backend=backend) for half in (False, True))
    with full, half:
        a, b = next(iter(full)).images, next(iter(half)).images
    assert b.dtype.itemsize == 2
    np.testing.assert_allclose(b.float().numpy(), a.numpy(), atol=0.07)


def torchvision_boxes(count, size, rng):
    """Draw (width, height) of random-resized crops in NumPy, as torchvision documents them."""
    found = []
    while len(found) < count:
        for _ in range(10):
            area = size * size * rng.uniform(0.08, 1.0)
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            width, height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < width <= size and 0 < height <= size:
                found.append((width, height))
                break
        else:
            found.append((size, size))
    return np.array(found, float)


def test_random_resized_crops_are_torchvisions(tmp_path):
    """In a gradient, the gray levels at the corners tell where a crop was cut, the slope how large it was."""
    size, crop = 256, 64
    data = write_dataset(tmp_path / "d", {"train": [gradient(size, size)] * 100}, size)
    view = TrainView(crop, augmentation="random-resized-crop")
    with Loader(data, "train", view, 100) as loader:
        images = np.concatenate([batch.images.double() for _ in range(10) for batch in loader])
    assert images.shape == (1000, 3, crop, crop)
    across, down = images[:, 0].mean(axis=1), images[:, 1].mean(axis=2)
    flipped = across[:, 0] > across[:, -1]
    across = np.where(flipped[:, None], across[:, ::-1], across)
    assert stats.binomtest(int(flipped.sum()), 1000).pvalue > 1e-3
    # The slope between inner pixels, free of border effects; pixel centers are at + 0.5.
    steps = [(line[:, -9] - line[:, 8]) / (crop - 17) for line in (across, down)]
    width, height = (step * crop for step in steps)
    starts = [line[:, 8] + 0.5 - 8.5 * step for line, step in zip((across, down), steps, strict=True)]
    expected = torchvision_boxes(10_000, size, np.random.default_rng(7))
    for ours, theirs in (
        (width * height, expected.prod(axis=1)),
        (width / height, expected[:, 0] / expected[:, 1]),
    ):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
    for start, side in zip(starts, (width, height), strict=True):
        free = size - side
        assert min(start.min(), side.min(), size - (start + side).max()) > -2
        inner = free > 20
        assert stats.kstest((start / free.clip(1))[inner], "uniform").pvalue > 1e-3


def test_random_resized_crops_take_normalization_and_any_size(fields, backend):
    plain = TrainView(80, augmentation="random-resized-crop")  # larger than the 64 px stored
    shifted = TrainView(80, MEAN, (2.0, 4.0, 5.0), augmentation="random-resized-crop")
    loaders = [Loader(fields, "train", view, 6, backend=backend) for view in (plain, shifted)]
    with loaders[0], loaders[1]:
        for (key, one), (same_key, other) in zip(*map(pairs, loaders), strict=True):
            assert key == same_key
            assert one.shape == (80, 80, 3)
            np.testing.assert_allclose(other, (one - MEAN) / [2, 4, 5], atol=1e-3)


def decoders_of(node):
    """Collect (id, name, device) of every decoder on which a graph's output depends."""
    if node.source is None:
        return set()
    text = str(node.source.spec)
    name, device = (re.search(rf"{what}(\w+)", text)[1] for what in ("OpSpec for ", "device: "))
    above = [each for given in node.source.inputs for each in (given if isinstance(given, list) else [given])]
    found = {pair for each in above for pair in decoders_of(each)}
    return found | ({(id(node.source), name, device)} if name.startswith("decoders") else set())


@pytest.mark.dali
@pytest.mark.parametrize("mode", ["square", "aspect", "original"])
@pytest.mark.parametrize(
    "view",
    [
        TrainView(),
        TrainView(augmentation="random-resized-crop"),
        EvalView(),
        EvalView("ten-crop"),
        EvalView("full-resize"),
    ],
)
def test_every_graph_decodes_once_and_no_gpu_decodes_a_region(view, mode):
    """DALI's region decoders may crash on a GPU, so the graph has them on the CPU only."""
    from nvidia.dali import Pipeline

    from pipeline.loader.dali import graph

    for gpu in (None, 0):
        with Pipeline(batch_size=2, num_threads=1, device_id=gpu):
            place, shape = Placement(gpu=gpu), ImageFormat(256, mode, 95)
            images = graph.build.__wrapped__(view, shape, place, OutputSettings())
        ((_, name, where),) = decoders_of(images)
        assert where == ("cpu" if gpu is None else "mixed")
        assert name == "decoders__Image" or gpu is None
        assert (images.device == "cpu") == (gpu is None)


@pytest.mark.dali
@pytest.mark.parametrize(
    ("view", "split", "mean"),
    [
        (TrainView(CROP, MEAN), "train", 0.0),
        (TrainView(CROP, augmentation="random-resized-crop"), "train", 1.5),
        (EvalView("center", CROP), "val", 0.0),
        (EvalView("ten-crop", CROP), "val", 0.0),
        (EvalView("full-resize", CROP), "val", 1.5),
    ],
)
def test_the_backends_differ_by_their_resamplers_only(noisy, view, split, mean):
    """Bit for bit without scaling. Images of original size are scaled in every view; they are noisy."""
    mean = 4.0 if noisy.image.mode == "original" else mean
    loaders = [Loader(noisy, split, view, 3, backend=name) for name in ("threads", "dali")]
    with loaders[0], loaders[1]:
        for one, other in zip(*loaders, strict=True):
            assert one.keys == other.keys
            assert one.images.stride() == other.images.stride()
            assert float((one.images - other.images).abs().mean()) <= mean
