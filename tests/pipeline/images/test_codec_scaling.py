import numpy as np
import pytest
from helpers.codec_files import attempt
from helpers.folders import draw_image, encoded
from hypothesis import example, given, settings, strategies as st
from PIL import Image

from pipeline.images.codec import DecodeError, decode, resize_shorter, resize_square

# Decoding at a smaller scale


@settings(max_examples=50)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 80),
    st.sampled_from(["RGB", "L", "CMYK"]),
    st.booleans(),
)
@example(1021, 2047, 256, "RGB", False)  # longer side 512 when decoded at 1/4, but 513 at full scale
def test_the_smallest_scale_that_holds_the_target_is_used(height, width, size, mode, progressive):
    data = encoded(Image.new(mode, (width, height)), progressive=progressive)
    found = decode(data, 10, size=size)
    whole = resize_shorter(np.zeros((height, width, 3), np.uint8), size)
    scales = [1] if min(height, width) <= 2 * size else [1, 2, 4, 8]
    sides = [(-(-height // scale), -(-width // scale)) for scale in scales]
    enough = [side for side in sides if side[0] >= whole.shape[0] and side[1] >= whole.shape[1]]
    assert found.pixels.shape[:2] == (enough[-1] if enough else (height, width))
    assert found.shape == (height, width)
    assert resize_shorter(found.pixels, size, found.shape).shape == whole.shape


@pytest.mark.parametrize("size", [32, 256])
def test_a_smaller_scale_shows_the_same_photograph(shared_data, size):
    """The difference was 1.3 to 2.8 gray levels over 19 photographs; the JPEG's quality costs 1 to 2."""
    data = (shared_data / "hostile" / "junk_header.JPEG").read_bytes()  # 768 × 1024
    whole, scaled = decode(data, 1), decode(data, 1, size=size)
    assert max(scaled.pixels.shape) == {256: 512, 32: 128}[size]
    expected = resize_shorter(whole.pixels, size).astype(int)
    found = resize_shorter(scaled.pixels, size, scaled.shape)
    assert np.abs(found - expected).mean() < 4
    assert np.abs((found - expected).mean(axis=(0, 1))).max() < 0.5


def test_an_eighth_is_the_mean_of_each_block():
    """The DC coefficient is the block's mean: an independent value for the scale 1/8."""
    pixels = np.repeat(np.repeat(draw_image(3, 8, 12)[:, :, :1], 8, axis=0), 8, axis=1)
    data = encoded(np.repeat(pixels, 3, axis=2), quality=100, subsampling=0)
    found = decode(data, 1, size=8).pixels
    assert np.abs(found.astype(int) - pixels[::8, ::8]).max() <= 1


@settings(max_examples=50)
@given(
    st.sampled_from([{}, {"progressive": True}, {"restart_marker_blocks": 2}]),
    st.integers(7, 30),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=3),
    st.integers(0, 20),
)
def test_damage_is_seen_at_every_scale(options, size, flips, cut):
    data = bytearray(encoded(draw_image(1, 61, 83), quality=90, **options))
    for at, mask in flips:
        data[at % len(data)] ^= mask
    data = bytes(data[: len(data) - cut])
    whole, scaled = attempt(data), attempt(data, size=size)
    if isinstance(whole, str):
        assert scaled == whole
    else:
        assert scaled.shape == whole.shape
        assert scaled.repair == whole.repair


def test_images_too_narrow_for_the_target_decode_all_the_same():
    data = encoded(draw_image(1, 3, 1200))
    assert decode(data, 1, size=1).pixels.shape == (2, 600, 3)
    assert decode(data, 1, size=100).pixels.shape == (3, 1200, 3)


# Resizing


@settings(max_examples=50)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 150))
def test_the_shorter_side_is_exact_and_the_longer_nearest(height, width, size):
    scaled = resize_shorter(np.zeros((height, width, 3), np.uint8), size)
    assert min(scaled.shape[:2]) == size
    longer = scaled.shape[0] if height > width else scaled.shape[1]
    assert abs(longer - max(height, width) * size / min(height, width)) <= 0.5
    assert scaled.dtype == np.uint8


def test_shrinking_by_any_factor_weighs_pixels_by_their_area():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    overlap = [  # share of target pixel t that source pixel s covers
        np.clip(np.minimum((t + 1) * n / m, s + 1) - np.maximum(t * n / m, s), 0, None) * m / n
        for n, m in ((50, 30), (70, 42))
        for t, s in [np.meshgrid(np.arange(m), np.arange(n), indexing="ij")]
    ]
    mean = np.einsum("ys,xt,stc->yxc", *overlap, pixels.astype(float))
    assert np.abs(resize_shorter(pixels, 30) - mean).max() <= 0.51


def cubic_matrix(source, target, a=-0.75):
    """Keys's cubic convolution with OpenCV's a, pixel centers aligned, edges repeated."""
    matrix = np.zeros((target, source))
    for t in range(target):
        at = (t + 0.5) * source / target - 0.5
        base = int(np.floor(at))
        for s in range(base - 1, base + 3):
            d = abs(at - s)
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[t, min(max(s, 0), source - 1)] += near if d <= 1 else far
    return matrix


def test_growing_is_cubic():
    pixels = np.random.default_rng(1).integers(0, 256, (20, 27, 3), np.uint8)
    rows, columns = cubic_matrix(20, 50), cubic_matrix(27, round(27 * 2.5))
    grown = np.clip(np.einsum("ys,xt,stc->yxc", rows, columns, pixels.astype(float)), 0, 255)
    assert np.abs(resize_shorter(pixels, 50) - grown).max() <= 1.5


def test_nothing_happens_at_the_wanted_size():
    pixels = draw_image(9, 40, 60)
    assert resize_shorter(pixels, 40) is pixels


def test_images_too_narrow_for_a_jpeg_are_refused():
    assert resize_shorter(np.zeros((1, 655, 3), np.uint8), 100).shape == (100, 65500, 3)
    for shape in ((1, 656, 3), (656, 1, 3), (100, 65501, 3), (200, 200_000, 3)):
        with pytest.raises(DecodeError, match="too narrow to scale to a shorter side of 100"):
            resize_shorter(np.zeros(shape, np.uint8), 100)


# The center square


@settings(max_examples=50)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60))
def test_the_center_square_is_scaled_alone(height, width, size):
    pixels = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = pixels[top : top + side, left : left + side].copy()
    square = resize_square(pixels, size)
    assert np.array_equal(square, resize_shorter(cut, size))
    assert square.flags.c_contiguous
