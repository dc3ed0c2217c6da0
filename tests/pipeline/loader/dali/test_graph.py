"""The DALI graph against an independent reference: Pillow decodes, NumPy crops, flips and adds noise."""

import io
import re
import tarfile

import numpy as np
import pytest
from helpers.synthetic import gradient, write_dataset
from nvidia.dali import Pipeline
from PIL import Image
from scipy import stats

from pipeline import EvalView, Loader, Placement, TrainView, color_noise
from pipeline.dataset.manifest import ImageFormat
from pipeline.loader.dali import graph

CROP, SIZE = 224, 256
MEAN = (120.5, 110.25, 100.125)


def pillow_images(dataset, split):
    """Decode a split's images with Pillow: key → float64 (H, W, 3)."""
    images = {}
    for path in dataset.tars(split):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    data = tar.extractfile(member).read()
                    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)
                    images[member.name.removesuffix(".jpg")] = image
    return images


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


def photographs(count, height, width, seed=0):
    """Draw smooth random color fields, in which no two crops are alike."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 12, 12, 3), np.uint8)
    return [np.asarray(Image.fromarray(s).resize((width, height), Image.Resampling.BICUBIC)) for s in small]


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return write_dataset(
        tmp_path_factory.mktemp("fields") / "data", {"train": photographs(6, SIZE, SIZE)}, SIZE
    )


@pytest.mark.parametrize("kind", ["none", "paper", "source"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_training_tensors_equal_the_reference(fields, kind, channels_last):
    noise = color_noise(kind, fields.statistics)
    view = TrainView(CROP, MEAN, (1.0, 2.0, 4.0), noise)
    divisor = noise.divisor if noise else 1.0
    std = np.array([1.0, 2.0, 4.0])
    images = pillow_images(fields, "train")
    with Loader(fields, "train", view, 3, keys=True, channels_last=channels_last) as loader:
        batches = list(loader)
    assert sum(len(b.keys) for b in batches) == 6
    for batch in batches:
        assert batch.images.shape == (3, 3, CROP, CROP)
        assert batch.images.permute(0, 2, 3, 1).is_contiguous() == channels_last
        for key, image in zip(batch.keys, batch.images.permute(0, 2, 3, 1).double().numpy(), strict=True):
            gray = image * std * divisor + MEAN  # back to gray levels, with the noise
            top, left, flip, shift = find_crop(images[key], gray, CROP)
            crop = images[key][top : top + CROP, left : left + CROP]
            if noise is None:
                np.testing.assert_allclose(shift, 0, atol=1e-3)
                alpha = np.zeros(3)
            else:
                alpha = np.linalg.solve(noise.mixing.astype(np.float64), shift)
                assert np.abs(alpha).max() < 6, "not a draw of N(0, 1)"
            noise_shift = noise.mixing @ alpha if noise else np.zeros(3)
            expected = ((crop[:, ::-1] if flip else crop) - MEAN + noise_shift) / (std * divisor)
            np.testing.assert_allclose(image * std * divisor, expected * std * divisor, atol=1e-3)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Images whose pixels tell their position: red is x, green is y."""
    folder = tmp_path_factory.mktemp("gradients") / "data"
    return write_dataset(folder, {"train": [gradient(SIZE, SIZE)] * 400}, SIZE)


def draws(dataset, epochs, crop=CROP, **options):
    """Measure left, top and flip of every sample's crop over some epochs."""
    found = []
    with Loader(dataset, "train", TrainView(crop), 100, **options) as loader:
        for _ in range(epochs):
            for batch in loader:
                red, green = batch.images[:, 0], batch.images[:, 1]
                left = (red.mean(dim=(1, 2)) - (crop - 1) / 2).round()
                top = (green.mean(dim=(1, 2)) - (crop - 1) / 2).round()
                flip = red[:, :, 0].mean(dim=1) > red[:, :, -1].mean(dim=1)
                found.append(np.stack([left, top, flip], axis=1))
    return np.concatenate(found).astype(int)


def test_crops_and_flips_are_uniform(gradients):
    found = draws(gradients, epochs=10)
    assert len(found) == 4000
    for axis in (0, 1):
        counts = np.bincount(found[:, axis], minlength=33)
        assert len(counts) == 33
        assert stats.chisquare(counts).pvalue > 1e-3  # rounding from 0..1 would halve both ends
    assert stats.binomtest(int(found[:, 2].sum()), len(found)).pvalue > 1e-3
    # axes and flips are independent of each other
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.06


def test_two_ranks_draw_differently(gradients):
    ranks = [draws(gradients, 1, placement=Placement(rank, 2)) for rank in (0, 1)]
    assert ranks[0].shape == ranks[1].shape == (200, 3)
    assert (ranks[0] == ranks[1]).all(axis=1).mean() < 0.1
    repeated = draws(gradients, 1, placement=Placement(0, 2))
    np.testing.assert_array_equal(ranks[0], repeated)


@pytest.mark.parametrize(("height", "width"), [(160, 251), (251, 160)])
def test_crops_of_unequal_sides_are_uniform(tmp_path, height, width):
    data = write_dataset(tmp_path / "d", {"train": [gradient(height, width)] * 400}, 160, mode="aspect")
    found = draws(data, epochs=8, crop=150)
    for axis, side in ((0, width), (1, height)):
        counts = np.bincount(found[:, axis], minlength=side - 150 + 1)
        assert len(counts) == side - 150 + 1
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(80, 125), (125, 80)])
def test_crops_of_images_of_original_size_are_uniform(tmp_path, height, width):
    """Images are stored at half the size: one gray level of the gradient is two loaded pixels."""
    size, crop = 160, 150
    data = write_dataset(tmp_path / "d", {"train": [gradient(height, width)] * 400}, size, mode="original")
    found = []
    with Loader(data, "train", TrainView(crop), 100) as loader:
        for _ in range(8):
            for batch in loader:
                means = batch.images[:, :2].mean(dim=(2, 3)).numpy()
                found.append(2 * means + 0.5 - (crop - 1) / 2)
    for axis, side in ((0, width), (1, height)):
        corners = np.concatenate(found)[:, axis]
        whole = corners.round().astype(int)
        assert np.abs(corners - whole).max() < 0.3
        counts = np.bincount(whole, minlength=2 * side - crop + 1)
        assert len(counts) == 2 * side - crop + 1
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["paper", "source"])
def test_color_noise_is_normal(tmp_path, kind):
    rng = np.random.default_rng(1)
    flat = [np.full((32, 32, 3), c, np.uint8) for c in rng.integers(60, 200, (400, 1, 1, 3))]
    data = write_dataset(tmp_path / "d", {"train": flat}, 32)
    noise = color_noise(kind, data.statistics)
    images = pillow_images(data, "train")
    alphas = []
    with Loader(data, "train", TrainView(32, noise=noise), 100, keys=True) as loader:
        for _ in range(5):
            for batch in loader:
                for key, image in zip(batch.keys, batch.images.double().numpy(), strict=True):
                    shift = image.mean(axis=(1, 2)) * noise.divisor - images[key].mean(axis=(0, 1))
                    alphas.append(np.linalg.solve(noise.mixing.astype(np.float64), shift))
    alphas = np.array(alphas)
    assert alphas.shape == (2000, 3)
    for column in alphas.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(alphas.T) - np.eye(3)).max() < 0.08


@pytest.mark.parametrize(
    ("height", "width", "mode"), [(64, 64, "square"), (64, 97, "aspect"), (90, 64, "aspect")]
)
def test_evaluation_views_equal_slices(tmp_path, height, width, mode):
    crop = 57
    data = write_dataset(
        tmp_path / "d",
        {"train": photographs(1, 64, 64), "val": photographs(4, height, width, 3)},
        64,
        mode=mode,
    )
    images = pillow_images(data, "val")
    with (
        Loader(data, "val", EvalView("center", crop), 3, keys=True) as center,
        Loader(data, "val", EvalView("ten-crop", crop), 3, keys=True) as ten,
    ):
        for one, many in zip(center, ten, strict=True):
            assert one.keys == many.keys
            assert many.images.shape[1:] == (10, 3, crop, crop)
            for number, key in enumerate(one.keys):
                image = images[key]
                top, left = (height - 64) // 2, (width - 64) // 2
                square = image[top : top + 64, left : left + 64]
                far = 64 - crop
                middle = far // 2
                corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
                expected = [square[y : y + crop, x : x + crop] for y, x in corners]
                got = many.images[number].permute(0, 2, 3, 1).double().numpy()
                for view, reference in zip(got[:5], expected, strict=True):
                    np.testing.assert_allclose(view, reference, atol=1e-3)
                np.testing.assert_array_equal(got[5:], got[:5, :, ::-1])
                single = one.images[number].permute(1, 2, 0).double().numpy()
                np.testing.assert_array_equal(single, got[4])


def scaled_by_pillow(image, size):
    """Scale an image's shorter side to `size` with Pillow, and cut the center square."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    target = (round(width * size / shorter), round(height * size / shorter))
    scaled = Image.fromarray(image.astype(np.uint8)).resize(target, Image.Resampling.BILINEAR)
    top, left = (target[1] - size) // 2, (target[0] - size) // 2
    return np.asarray(scaled, np.float64)[top : top + size, left : left + size]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Noisy images of many sizes: larger than twice the loaded size, equal to it, and smaller."""
    sizes = [(300, 431), (260, 170), (64, 64), (64, 99), (41, 30), (20, 333), (128, 128), (65, 64)]
    rng = np.random.default_rng(5)
    images = [
        np.clip(photographs(1, *shape, k)[0] + rng.normal(0, 12, (*shape, 3)), 0, 255).astype(np.uint8)
        for k, shape in enumerate(sizes)
    ]
    folder = tmp_path_factory.mktemp("originals") / "data"
    return write_dataset(folder, {"train": images, "val": images}, 64, mode="original")


def test_images_of_original_size_are_scaled_as_by_pillow(originals):
    crop = 57
    images = pillow_images(originals, "val")
    with (
        Loader(originals, "val", EvalView("center", crop), 3, keys=True) as center,
        Loader(originals, "val", EvalView("ten-crop", crop), 3, keys=True) as ten,
    ):
        seen = 0
        for one, many in zip(center, ten, strict=True):
            for number, key in enumerate(one.keys):
                square = scaled_by_pillow(images[key], 64)
                got = many.images[number].permute(0, 2, 3, 1).double().numpy()
                for view, (y, x) in zip(got[:5], [(0, 0), (0, 7), (7, 0), (7, 7), (3, 3)], strict=True):
                    # Pillow rounds to gray levels between the two axes, DALI at the end only.
                    difference = np.abs(view - square[y : y + crop, x : x + crop])
                    assert difference.max() <= 2
                    assert difference.mean() < 0.3
                np.testing.assert_array_equal(got[5:], got[:5, :, ::-1])
                single = one.images[number].permute(1, 2, 0).double().numpy()
                np.testing.assert_array_equal(single, got[4])
                seen += 1
    assert seen == 8


def test_training_crops_of_images_of_original_size_are_crops_of_the_scaled_image(originals):
    crop = 64  # all of a square image: only the flip is random
    images = pillow_images(originals, "train")
    squares = [key for key, pixels in images.items() if pixels.shape[0] == pixels.shape[1]]
    assert len(squares) == 2
    flips = set()
    with Loader(originals, "train", TrainView(crop, MEAN, (1.0, 2.0, 4.0)), 8, keys=True) as loader:
        for _ in range(6):
            for batch in loader:
                assert batch.images.shape == (8, 3, crop, crop)
                for key, image in zip(batch.keys, batch.images.permute(0, 2, 3, 1).double(), strict=True):
                    if key in squares:
                        gray = image.numpy() * [1, 2, 4] + MEAN
                        reference = scaled_by_pillow(images[key], 64)
                        off = [np.abs(gray - r).max() for r in (reference, reference[:, ::-1])]
                        assert min(off) <= 2
                        flips.add((key, off[1] < off[0]))
    assert len(flips) == 4


def test_float16_is_the_rounded_float32(fields):
    view = TrainView(CROP, MEAN)
    with Loader(fields, "train", view, 6) as full, Loader(fields, "train", view, 6, half=True) as half:
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
    data = write_dataset(tmp_path / "d", {"train": [gradient(size, size)] * 300}, size)
    boxes, flips = [], 0
    with Loader(data, "train", TrainView(crop, augmentation="random-resized-crop"), 100) as loader:
        for _ in range(10):
            for batch in loader:
                assert batch.images.shape == (100, 3, crop, crop)
                for image in batch.images.double().numpy():
                    across, down = image[0].mean(axis=0), image[1].mean(axis=1)
                    flips += across[0] > across[-1]
                    across = across[:: -1 if across[0] > across[-1] else 1]
                    # The slope between inner pixels, free of border effects; pixel centers are at + 0.5.
                    steps = [(line[-9] - line[8]) / (crop - 17) for line in (across, down)]
                    starts = [
                        line[8] + 0.5 - 8.5 * step for line, step in zip((across, down), steps, strict=True)
                    ]
                    boxes.append([steps[0] * crop, steps[1] * crop, *starts])
    boxes = np.array(boxes)
    assert boxes.shape == (3000, 4)
    width, height, left, top = boxes.T
    assert (boxes > -2).all()
    assert (left + width).max() < size + 2
    assert (top + height).max() < size + 2
    expected = torchvision_boxes(20_000, size, np.random.default_rng(7))
    for ours, theirs in (
        (width * height, expected.prod(axis=1)),
        (width / height, expected[:, 0] / expected[:, 1]),
    ):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
    for start, side in ((left, width), (top, height)):
        free = size - side
        inner = free > 20
        assert stats.kstest((start / free.clip(1))[inner], "uniform").pvalue > 1e-3
    assert stats.binomtest(flips, 3000).pvalue > 1e-3


def test_random_resized_crops_take_normalization_and_any_size(fields):
    plain = TrainView(300, augmentation="random-resized-crop")  # larger than the 256 px stored
    shifted = TrainView(300, MEAN, (2.0, 4.0, 5.0), augmentation="random-resized-crop")
    with Loader(fields, "train", plain, 4) as a, Loader(fields, "train", shifted, 4) as b:
        for one, other in zip(a, b, strict=True):
            assert one.images.shape == (4, 3, 300, 300)
            expected = (one.images.permute(0, 2, 3, 1).numpy() - np.float32(MEAN)) / np.float32([2, 4, 5])
            np.testing.assert_allclose(other.images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "mode"), [(64, 64, "square"), (64, 97, "aspect"), (90, 130, "original")]
)
@pytest.mark.parametrize("crop", [48, 64, 80])
def test_full_resize_is_the_whole_image_squeezed(tmp_path, height, width, mode, crop):
    images = photographs(3, height, width, 3)
    data = write_dataset(tmp_path / "d", {"train": images, "val": images}, 64, mode=mode)
    stored = pillow_images(data, "val")
    with Loader(data, "val", EvalView("full-resize", crop), 2, keys=True) as loader:
        for batch in loader:
            for key, image in zip(batch.keys, batch.images.permute(0, 2, 3, 1).numpy(), strict=True):
                whole = Image.fromarray(stored[key].astype(np.uint8))
                expected = np.asarray(whole.resize((crop, crop), Image.Resampling.BILINEAR), np.float64)
                difference = np.abs(image - expected)
                assert difference.max() <= 2
                assert difference.mean() < 0.5


def decoders_of(node):
    """Collect (name, device) of every decoder on which a graph's output depends."""
    if node.source is None:
        return set()
    text = str(node.source.spec)
    name, device = (re.search(rf"{what}(\w+)", text)[1] for what in ("OpSpec for ", "device: "))
    above = [each for given in node.source.inputs for each in (given if isinstance(given, list) else [given])]
    found = {pair for each in above for pair in decoders_of(each)}
    return found | ({(name, device)} if name.startswith("decoders") else set())


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
def test_no_gpu_decodes_a_region(view, mode):
    """DALI's region decoders may crash on a GPU, so the graph has them on the CPU only."""
    reader = graph.ReaderSettings(["a.tar"], ["a.idx"], 4)
    for device in ("cpu", "hybrid", "gpu"):
        with Pipeline(batch_size=2, num_threads=1, device_id=None if device == "cpu" else 0):
            place, stored = Placement(device=device), ImageFormat(256, mode, 95)
            images = graph.build.__wrapped__(reader, view, stored, place, graph.OutputSettings())[0]
        found = decoders_of(images)
        assert len(found) == 1
        if device == "gpu":
            assert found == {("decoders__Image", "mixed")}
        else:
            assert {where for _, where in found} == {"cpu"}
        assert (images.device == "cpu") == (device == "cpu")
