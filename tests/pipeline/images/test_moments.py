import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.statistics import Moments


def reference(pictures):
    """Python's own integers: count, sums, products."""
    pixels = [tuple(map(int, pixel)) for picture in pictures for pixel in picture.reshape(-1, 3)]
    sums = [sum(p[i] for p in pixels) for i in range(3)]
    products = [[sum(p[i] * p[j] for p in pixels) for j in range(3)] for i in range(3)]
    return len(pixels), sums, products


def moments_of(pictures, square=None):
    moments = Moments() if square is None else Moments.for_square(square)
    for picture in pictures:
        moments.add(picture)
    return moments


def bits(moments):
    image = None if moments.image_sum is None else moments.image_sum.tobytes()
    return moments.images, moments.count, moments.sums.tobytes(), moments.products.tobytes(), image


def random_picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_sums_equal_those_of_python_integers(seed, height, width):
    pictures = [random_picture(seed, height, width), random_picture(seed + 1, width, 3)]
    moments = moments_of(pictures)
    count, sums, products = reference(pictures)
    assert (moments.images, moments.count) == (2, count)
    assert moments.sums.tolist() == sums
    assert moments.products.tolist() == products
    assert moments.image_sum is None


@pytest.mark.parametrize("pixels", [1, 255, 256, 257, 511, 512, 513, 1_000_003])
def test_white_is_the_worst_case_and_exact(pixels):
    moments = moments_of([np.full((pixels, 1, 3), 255, np.uint8)])
    assert moments.sums.tolist() == [255 * pixels] * 3
    assert moments.products.tolist() == [[255 * 255 * pixels] * 3] * 3


def test_large_pictures_equal_numpy_in_int64():
    picture = random_picture(0, 613, 509)
    flat = picture.reshape(-1, 3).astype(np.int64)
    moments = moments_of([picture])
    assert np.array_equal(moments.products, flat.T @ flat)
    assert np.array_equal(moments.sums, flat.sum(axis=0))
    assert moments.products.dtype == moments.sums.dtype == np.int64


def test_views_and_transposed_pictures_count_alike():
    picture = random_picture(1, 30, 20)
    turned = np.ascontiguousarray(picture[::-1, ::-1])
    assert bits(moments_of([picture[::-1, ::-1]])) == bits(moments_of([turned]))
    assert bits(moments_of([picture])) == bits(moments_of([picture.transpose(1, 0, 2)]))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.permutations(range(4)), st.integers(0, 99))
def test_any_partition_merged_in_any_order_gives_the_same_bits(workers, order, seed):
    pictures = [random_picture(seed * 100 + k, 8, 8) for k in range(len(workers))]
    parts = [
        moments_of([p for p, worker in zip(pictures, workers, strict=True) if worker == w], 8)
        for w in range(4)
    ]
    merged = Moments.for_square(8)
    for w in order:
        merged.merge(parts[w])
    assert bits(merged) == bits(moments_of(pictures, 8))
    assert np.array_equal(merged.image_sum, np.sum(pictures, axis=0, dtype=np.int64))


def test_parts_without_a_sum_image_leave_it_alone():
    merged = moments_of([random_picture(0, 8, 8)], 8)
    before = merged.image_sum.copy()
    merged.merge(Moments())
    assert np.array_equal(merged.image_sum, before)


def test_moments_do_not_share_their_arrays():
    a, b = Moments(), Moments()
    a.add(random_picture(0, 2, 2))
    assert not b.sums.any()
    assert not b.products.any()


def test_a_picture_of_another_size_has_no_place_in_the_sum_image():
    with pytest.raises(ValueError, match=r"shape \(8, 9, 3\) among those of \(8, 8, 3\)"):
        Moments.for_square(8).add(random_picture(0, 8, 9))


def test_more_pictures_than_float32_could_sum_are_exact(monkeypatch):
    monkeypatch.setattr("pipeline.images.statistics._MOST_IMAGES", 7)
    pictures = [random_picture(k, 4, 4) for k in range(30)]
    assert np.array_equal(moments_of(pictures, 4).image_sum, np.sum(pictures, axis=0, dtype=np.int64))
    assert 2**24 // 255 * 255 <= 2**24 < (2**24 // 255 + 1) * 255


def test_reading_the_sum_image_between_pictures_changes_nothing():
    pictures = [random_picture(k, 4, 4) for k in range(5)]
    moments = Moments.for_square(4)
    for picture in pictures:
        moments.add(picture)
        assert moments.image_sum.dtype == np.int64
    assert np.array_equal(moments.image_sum, np.sum(pictures, axis=0, dtype=np.int64))


def test_pictures_of_changing_sizes_leave_nothing_behind():
    pictures = [random_picture(k, *shape) for k, shape in enumerate([(20, 30), (19, 30), (3, 3), (20, 30)])]
    _, _, products = reference(pictures)
    assert moments_of(pictures).products.tolist() == products
