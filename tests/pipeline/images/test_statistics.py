import contextlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.images.codec import DecodeError, decode, resize_square
from pipeline.images.statistics import Moments, mean_image_of, statistics_of


def reference(images):
    """(count, sums, products) in Python's integers."""
    pixels = [tuple(map(int, pixel)) for image in images for pixel in image.reshape(-1, 3)]
    sums = [sum(p[i] for p in pixels) for i in range(3)]
    products = [[sum(p[i] * p[j] for p in pixels) for j in range(3)] for i in range(3)]
    return len(pixels), sums, products


def moments_of(images, square=None):
    moments = Moments() if square is None else Moments.for_square(square)
    for image in images:
        moments.add(image)
    return moments


def bits(moments):
    image = None if moments.image_sum is None else moments.image_sum.tobytes()
    return moments.images, moments.count, moments.sums.tobytes(), moments.products.tobytes(), image


def random_image(seed, height=9, width=7):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_sums_equal_those_of_python_integers(seed, height, width):
    images = [random_image(seed, height, width), random_image(seed + 1, width, 3)]
    moments = moments_of(images)
    count, sums, products = reference(images)
    assert (moments.images, moments.count) == (2, count)
    assert moments.sums.tolist() == sums
    assert moments.products.tolist() == products
    assert moments.image_sum is None


@pytest.mark.parametrize("pixels", [1, 257, 1_000_003])
def test_white_is_the_worst_case_and_exact(pixels):
    moments = moments_of([np.full((pixels, 1, 3), 255, np.uint8)])
    assert moments.sums.tolist() == [255 * pixels] * 3
    assert moments.products.tolist() == [[255 * 255 * pixels] * 3] * 3


def test_views_and_transposed_images_count_alike():
    image = random_image(1, 30, 20)
    turned = np.ascontiguousarray(image[::-1, ::-1])
    assert bits(moments_of([image[::-1, ::-1]])) == bits(moments_of([turned]))
    assert bits(moments_of([image])) == bits(moments_of([image.transpose(1, 0, 2)]))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.permutations(range(4)), st.integers(0, 99))
def test_any_partition_merged_in_any_order_gives_the_same_bits(workers, order, seed):
    images = [random_image(seed * 100 + k, 8, 8) for k in range(len(workers))]
    parts = [
        moments_of([p for p, worker in zip(images, workers, strict=True) if worker == w], 8) for w in range(4)
    ]
    merged = Moments.for_square(8)
    for w in order:
        merged.merge(parts[w])
    assert bits(merged) == bits(moments_of(images, 8))
    assert np.array_equal(merged.image_sum, np.sum(images, axis=0, dtype=np.int64))


def test_parts_without_a_sum_image_leave_it_alone():
    merged = moments_of([random_image(0, 8, 8)], 8)
    before = merged.image_sum.copy()
    merged.merge(Moments())
    assert np.array_equal(merged.image_sum, before)


def test_a_image_of_another_size_has_no_place_in_the_sum_image():
    with pytest.raises(ValueError, match=r"shape \(8, 9, 3\), but the others have \(8, 8, 3\)"):
        Moments.for_square(8).add(random_image(0, 8, 9))


def test_more_images_than_float32_could_sum_are_exact(monkeypatch):
    monkeypatch.setattr("pipeline.images.statistics._MOST_IMAGES", 7)
    images = [random_image(k, 4, 4) for k in range(30)]
    assert np.array_equal(moments_of(images, 4).image_sum, np.sum(images, axis=0, dtype=np.int64))
    assert 2**24 // 255 * 255 <= 2**24 < (2**24 // 255 + 1) * 255


# Constants of the released source: standard deviations along three directions, and the directions as columns
# of a matrix with rows R, G, B.
SOURCE_DEVIATIONS = np.array([19.72, 37.09, 121.78])
SOURCE_VECTORS = np.array(
    [[0.41796, -0.71258, -0.56351], [-0.81698, -0.02354, -0.57618], [0.39731, 0.70120, -0.59200]]
)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12))
def test_mean_and_covariance_are_the_nearest_doubles_to_the_exact_values(seed, height, width):
    image = random_image(seed, height, width)
    found = statistics_of(moments_of([image]))
    pixels = [[Fraction(int(v)) for v in pixel] for pixel in image.reshape(-1, 3)]
    n = len(pixels)
    mean = [sum(p[i] for p in pixels) / n for i in range(3)]
    covariance = [
        [sum((p[i] - mean[i]) * (p[j] - mean[j]) for p in pixels) / n for j in range(3)] for i in range(3)
    ]
    assert found.pixels == n
    assert found.mean == tuple(float(m) for m in mean)
    assert found.covariance == tuple(tuple(float(c) for c in row) for row in covariance)


def test_no_precision_is_lost_over_as_many_pixels_as_imagenet_has():
    n = 1_281_167 * 256 * 256
    moments = Moments(
        count=n, sums=np.full(3, 254 * n + 1), products=np.full((3, 3), 254 * 254 * n + 2 * 254 + 1)
    )
    exact = Fraction(1, n) - Fraction(1, n * n)  # one pixel of 255 among 254s
    assert statistics_of(moments).covariance == ((float(exact),) * 3,) * 3


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_the_eigenvectors_rebuild_the_covariance(seed):
    found = statistics_of(moments_of([random_image(seed)]))
    vectors, values = np.array(found.eigenvectors), np.array(found.eigenvalues)
    assert np.allclose(vectors.T @ np.diag(values) @ vectors, found.covariance, rtol=1e-10, atol=1e-7)
    assert np.allclose(vectors @ vectors.T, np.eye(3), atol=1e-12)
    assert values[0] >= values[1] >= values[2] >= 0
    assert np.allclose(found.deviations**2, values)
    for row in vectors:
        assert row[np.abs(row).argmax()] > 0


def test_a_image_along_one_direction():
    # The pixels lie 6 apart along (2, 1, -2) / 3, so 3 from their mean: a variance of 9.
    found = statistics_of(moments_of([np.array([[[10, 20, 30], [14, 22, 26]]], np.uint8)]))
    assert (found.pixels, found.mean, found.measured_on) == (2, (12, 21, 28), "source")
    assert found.covariance == ((4, 2, -4), (2, 1, -2), (-4, -2, 4))
    assert found.eigenvalues == pytest.approx((9, 0, 0), abs=1e-12)
    direction = np.array(found.eigenvectors[0])
    assert np.abs(direction) == pytest.approx([2 / 3, 1 / 3, 2 / 3])
    assert direction[0] * direction[2] < 0


@pytest.mark.parametrize("level", [0, 120, 255])
def test_gray_and_flat_images_have_no_negative_variance(level):
    gray = np.repeat(random_image(level)[:, :, :1], 3, axis=2)
    for image in (gray, np.full((4, 4, 3), level)):
        found = statistics_of(moments_of([image]))
        assert min(found.eigenvalues) >= 0
        assert np.isfinite(found.deviations).all()


def test_no_pixels_no_statistics():
    with pytest.raises(ValueError, match="no pixel was added"):
        statistics_of(Moments())


def test_mean_image():
    images = [random_image(k, 8, 8) for k in range(7)]
    found = mean_image_of(moments_of(images, 8))
    assert found.dtype == np.float32
    assert np.array_equal(found, np.mean(images, axis=0, dtype=np.float64).astype(np.float32))


@pytest.mark.parametrize("moments", [Moments(), Moments.for_square(8), moments_of([random_image(0)])])
def test_no_mean_image_without_square_images(moments):
    with pytest.raises(ValueError, match="no mean image"):
        mean_image_of(moments)


def test_real_images_land_on_the_directions_of_the_released_source(shared_data):
    moments = Moments()
    for path in sorted((shared_data / "imagenet-sample" / "train").rglob("*.JPEG")):
        with contextlib.suppress(DecodeError):
            moments.add(resize_square(decode(path.read_bytes(), 100, size=96).pixels, 96))
    found = statistics_of(moments)
    order = SOURCE_DEVIATIONS.argsort()[::-1]  # ours are sorted, largest first
    cosines = np.array(found.eigenvectors) @ SOURCE_VECTORS[:, order]
    assert np.abs(np.diag(cosines)).min() > 0.99
    assert np.abs(cosines - np.diag(np.diag(cosines))).max() < 0.15
    # Ten classes at 96 px vary less than ImageNet, by the same order of magnitude in each direction.
    ratios = found.deviations / SOURCE_DEVIATIONS[order]
    assert (ratios > 0.7).all()
    assert (ratios < 1.7).all()
