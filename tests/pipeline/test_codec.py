import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from folders import encoded, needs_proc, picture, python
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from pipeline.codec import DecodeError, centre_square, decode, encode, resize_shorter

JPEG = encoded(picture(1, 61, 83), quality=90)
START_OF_SCAN = JPEG.index(b"\xff\xda") + 14


def pillow(data, mode="RGB"):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert(mode))


def with_size(jpeg, height, width):
    """Rewrite the frame header of a baseline JPEG to claim another size."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def png_header(height, width):
    """A PNG of 1-bit grey that ends after its header and an empty data chunk."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


# Decoding: what is accepted


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 20}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_decode_as_pillow_decodes_them(mode, options):
    data = encoded(Image.fromarray(picture(2, 61, 83)).convert(mode), **options)
    found = decode(data, 1)
    assert found.repair == ""
    assert found.pixels.dtype == np.uint8
    assert np.array_equal(found.pixels, pillow(data))


def jfif_revision(jpeg, revision):
    at = jpeg.index(b"JFIF\0") + 5
    return jpeg[:at] + revision + jpeg[at + 2 :]


TABLES = JPEG.index(b"\xff\xdb")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(JPEG[:2] + b"12345" + JPEG[2:], id="after the start"),
        pytest.param(JPEG[:TABLES] + b"1\xff\x00\xff\xd0" + JPEG[TABLES:], id="before the tables"),
        pytest.param(JPEG[: START_OF_SCAN - 14] + b"1" + JPEG[START_OF_SCAN - 14 :], id="before the scan"),
        pytest.param(jfif_revision(JPEG, b"\0\0"), id="JFIF 0.0"),
        pytest.param(jfif_revision(JPEG, b"\x07\x01"), id="JFIF 7.1"),
    ],
)
def test_stray_bytes_in_the_header_cost_no_pixel(data):
    found = decode(data, 1)
    assert np.array_equal(found.pixels, pillow(JPEG))
    assert found.repair == "stray or odd bytes in the header removed"


@pytest.mark.parametrize("sampling", [0x14, 0x31])
def test_samplings_that_cannot_be_decoded_strictly_are_refused(sampling):
    """Pillow decodes these without a word, though the scan was made for another sampling: garbage."""
    data = bytearray(encoded(picture(1, 61, 83), subsampling=0))
    data[data.index(b"\xff\xc0") + 11] = sampling
    pillow(bytes(data))
    with pytest.raises(DecodeError, match="a chroma sampling that cannot be decoded strictly"):
        decode(bytes(data), 1)


def test_whatever_pillow_raises_is_a_reason(monkeypatch):
    def broken(*_, **__):
        raise TypeError("'bytes' object cannot be interpreted as an integer")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(DecodeError, match="TypeError: 'bytes' object"):
        decode(b"II*\0 a damaged TIFF", 1)


def test_a_mended_header_does_not_hide_a_corrupt_scan():
    cut = JPEG[:2] + b"12345" + JPEG[2 : (START_OF_SCAN + len(JPEG)) // 2]
    with pytest.raises(DecodeError, match="Premature end of JPEG file"):
        decode(cut, 1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_keep_every_pixel_whatever_the_file_is_called(kind):
    pixels = picture(3, 20, 31)
    found = decode(encoded(pixels, kind, **({"lossless": True} if kind == "WEBP" else {})), 1)
    assert np.array_equal(found.pixels, pixels)
    assert found.repair == f"{kind} (RGB) converted"


def test_gif_palette_is_resolved():
    indexed = Image.fromarray(picture(4)).quantize(16)
    found = decode(encoded(indexed, "GIF"), 1)
    assert np.array_equal(found.pixels, np.asarray(indexed.convert("RGB")))
    assert found.repair == "GIF (P) converted"


def test_alpha_is_dropped_and_colours_stay():
    rgba = np.dstack([picture(5), np.full((48, 48), 7, np.uint8)])
    found = decode(encoded(rgba, "PNG"), 1)
    assert np.array_equal(found.pixels, rgba[:, :, :3])
    assert found.repair == "PNG (RGBA) converted"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_upper_byte(kind):
    grey = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(40, 30)
    found = decode(encoded(grey, kind), 1)
    assert np.array_equal(found.pixels, np.repeat((grey >> 8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("options", [{"subsampling": 0, "quality": 100}, {"quality": 90}])
@pytest.mark.parametrize("marker", [True, False])
def test_cmyk_becomes_rgb_as_in_pillow(marker, options):
    data = encoded(Image.fromarray(picture(6, 40, 56)).convert("CMYK"), **options)
    at = data.index(b"\xff\xee")
    assert data[at : at + 9] == b"\xff\xee\x00\x0eAdobe"
    if not marker:  # readers take the values as inverted all the same
        data = data[:at] + data[at + 16 :]
    found = decode(data, 1)
    assert "CMYK" in found.repair
    difference = np.abs(found.pixels.astype(int) - pillow(data))
    assert difference.max() <= 1  # rounding of one product
    assert difference.mean() < 0.5


def test_cmyk_inks_mean_what_they_say():
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:4, :, 0] = 255  # cyan above, half black below
    inks[4:, :, 3] = 128
    found = decode(encoded(Image.fromarray(inks, "CMYK"), subsampling=0, quality=100), 1).pixels
    assert np.abs(found[1, 1].astype(int) - [0, 255, 255]).max() <= 3
    assert np.abs(found[6, 6].astype(int) - 127).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(picture(7, 20, 30), exif=exif), 1)
    assert found.pixels.shape == (20, 30, 3)
    assert np.array_equal(found.pixels, decode(encoded(picture(7, 20, 30)), 1).pixels)


# Decoding: what is refused


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty file", id="empty"),
        pytest.param(bytes(1000), "not a picture in a known format", id="zeros"),
        pytest.param(b"<html>404</html>", "not a picture in a known format", id="html"),
        pytest.param(b"junk" + JPEG, "not a picture in a known format", id="junk before the start"),
        pytest.param(JPEG[:2], "not a picture in a known format", id="two bytes"),
        pytest.param(JPEG[:200], "Truncated", id="header cut"),
        pytest.param(JPEG[:-2], "Premature end of JPEG file", id="end mark cut"),
        pytest.param(JPEG[: len(JPEG) // 2], "Premature end of JPEG file", id="half"),
        pytest.param(
            JPEG[:START_OF_SCAN] + b"\xff\xd3" * 40 + JPEG[START_OF_SCAN + 80 :], "Corrupt JPEG", id="scan"
        ),
        pytest.param(
            JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c"),
            "Unsupported JPEG data precision 12",
            id="12 bit",
        ),
        pytest.param(encoded(picture(1), "PNG")[:-400], "truncated", id="PNG cut"),
        pytest.param(encoded(picture(1), "GIF")[:-400], "truncated", id="GIF cut"),
        pytest.param(encoded(picture(1), "BMP")[:-400], "truncated", id="BMP cut"),
        pytest.param(encoded(picture(1), "WEBP")[:-200], "could not create decoder object", id="WebP cut"),
        pytest.param(encoded(picture(1), "TIFF")[:-400], "truncated", id="TIFF cut"),
        pytest.param(encoded(picture(1), "PPM")[:-400], "truncated", id="PPM cut"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture", id="script"),
    ],
)
def test_damaged_files_are_refused_with_a_reason(data, reason):
    with pytest.raises(DecodeError, match=reason) as refused:
        decode(data, 1)
    assert str(refused.value).strip()
    assert "\n" not in str(refused.value)


def test_the_limit_on_pixels_is_inclusive():
    assert decode(encoded(picture(1, 100, 100)), 0.01).pixels.shape == (100, 100, 3)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(DecodeError, match=r"101x100 pixels are more than 0\.01 megapixels"):
            decode(encoded(picture(1, 100, 101), kind), 0.01)


@pytest.mark.parametrize(
    ("side", "limit", "reason"),
    [(14_000, 100, "more than 100 megapixels"), (9_800, 100, "OSError"), (14_000, 200, "OSError")],
)
def test_the_limit_is_ours_alone(side, limit, reason):
    # Pillow warns from 89 and refuses from 179 megapixels on, whatever the user allows.
    with pytest.raises(DecodeError, match=reason):
        decode(png_header(side, side), limit)


@needs_proc
def test_bombs_are_refused_before_memory_is_taken():
    code = """
import resource, sys
from pipeline.codec import DecodeError, decode
files = [bytes.fromhex(line) for line in sys.stdin.read().split()]
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (1 << 30),) * 2)
for data in files:
    try:
        print(decode(data, 100).pixels.shape)
    except DecodeError as error:
        print(error)
"""
    gif = bytearray(encoded(picture(1), "GIF"))
    gif[6:10] = struct.pack("<HH", 60000, 50000)
    bmp = bytearray(encoded(picture(1), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 50000)
    ppm = b"P6 60000 50000 255\n" + bytes(100)
    bombs = [with_size(JPEG, 50000, 60000), png_header(50000, 60000), bytes(gif), bytes(bmp), ppm]
    process = python(code, stdin=-1, stdout=-1, stderr=-1)
    out, err = process.communicate("\n".join(bomb.hex() for bomb in bombs))
    assert err == ""
    assert out.splitlines() == ["60000x50000 pixels are more than 100 megapixels"] * len(bombs)


def small(kind, mode="RGB", **options):
    return encoded(Image.fromarray(picture(8, 24, 31)).convert(mode), kind, **options)


EXIF = Image.Exif()
EXIF[0x010E] = "a description"

FUZZED = {
    "jpeg": small("JPEG"),
    "progressive": small("JPEG", progressive=True),
    "exif": small("JPEG", exif=EXIF),
    "cmyk": small("JPEG", "CMYK"),
    "png": small("PNG"),
    "palette": small("PNG", "P"),
    "gif": small("GIF"),
    "webp": small("WEBP"),
    "bmp": small("BMP"),
    "tiff": small("TIFF"),
    "lzw": small("TIFF", compression="tiff_lzw"),
    "ppm": small("PPM"),
}


@given(
    st.sampled_from(sorted(FUZZED)),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=20),
    st.integers(0, 40) | st.integers(0, 10**6),
)
@example("jpeg", [], 0)
@example("tiff", [(0, 255)], 1)
def test_any_damage_is_either_decoded_or_a_decode_error(kind, flips, cut):
    data = bytearray(FUZZED[kind])
    for position, mask in flips:
        data[position % len(data)] ^= mask
    with contextlib.suppress(DecodeError):
        found = decode(bytes(data[: len(data) - cut % len(data)]), 1)
        assert found.pixels.dtype == np.uint8
        assert found.pixels.ndim == 3
        assert found.pixels.shape[2] == 3


@given(st.binary(max_size=200), st.sampled_from([b"", *(data[:20] for data in FUZZED.values())]))
def test_noise_is_a_decode_error(noise, head):
    with pytest.raises(DecodeError):
        decode(head + noise, 1)


# Real files that break naive pipelines: their size when decoded (height, width) or why not

HOSTILE = {
    "adobe_rgb_colorspace": (100, 100, ""),
    "bomb_65535x65535_186bytes": "65535x65535 pixels are more than 100 megapixels",
    "cmyk_adobe0_subsampled_256x256": (256, 256, "JPEG (CMYK) converted"),
    "cmyk_ycck_adobe2_100x100": (100, 100, "CMYK converted to RGB"),
    "corrupt_huffman_1160x1068": "OSError: broken data stream when reading image file",
    "exif_orient1_portrait_600x450": (600, 450, ""),
    "exif_orient3_portrait_600x450": (600, 450, ""),
    "exif_orient6_portrait_600x450": (450, 600, ""),
    "exif_orient6_real_imagenet_can_opener": (294, 392, ""),
    "gif_with_jpeg_suffix_384x288": (288, 384, "GIF (P) converted"),
    "gray_1000x1": (1, 1000, ""),
    "gray_1x1": (1, 1, ""),
    "gray_bad_exif_500x500": "Corrupt JPEG data: 1214 extraneous bytes before marker 0xd0",
    "junk_header": (768, 1024, "stray or odd bytes in the header removed"),
    "null_height": "not a picture in a known format",
    "png_rgba_with_jpeg_suffix_6x6": (6, 6, "PNG (RGBA) converted"),
    "png_with_jpeg_suffix_600x300": (300, 600, "PNG (RGB) converted"),
    "small_real_imagenet_75x56": (56, 75, ""),
    "truncated_100x100": "Premature end of JPEG file",
    "truncated_progressive_or_mpf_1512x2688": "Premature end of JPEG file",
    "twelve_bit": "Unsupported JPEG data precision 12",
    "zero_bytes": "empty file",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(shared_data, name):
    data = (shared_data / "hostile" / f"{name}.JPEG").read_bytes()
    expected = HOSTILE[name]
    if isinstance(expected, str):
        with pytest.raises(DecodeError) as refused:
            decode(data, 100)
        assert str(refused.value) == expected
        return
    height, width, repair = expected
    found = decode(data, 100)
    assert found.pixels.shape == (height, width, 3)
    assert found.repair == repair
    reference = pillow(data).astype(int)
    assert np.abs(found.pixels - reference).max() <= (1 if "CMYK" in repair else 0)


def test_every_hostile_file_is_in_the_table(shared_data):
    assert {path.stem for path in (shared_data / "hostile").glob("*.JPEG")} == HOSTILE.keys()


# Scaling


@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 150))
def test_the_shorter_side_is_exact_and_the_longer_nearest(height, width, size):
    scaled = resize_shorter(np.zeros((height, width, 3), np.uint8), size)
    assert min(scaled.shape[:2]) == size
    longer = scaled.shape[0] if height > width else scaled.shape[1]
    assert abs(longer - max(height, width) * size / min(height, width)) <= 0.5
    assert scaled.dtype == np.uint8


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(16, 16), (16, 21), (25, 16)])
def test_shrinking_by_a_whole_factor_is_the_mean_of_each_block(factor, shape):
    rows, columns = shape
    pixels = np.random.default_rng(factor).integers(0, 256, (rows * factor, columns * factor, 3), np.uint8)
    mean = pixels.reshape(rows, factor, columns, factor, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(resize_shorter(pixels, 16) - mean).max() <= 0.5 + 1e-4


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
    """Keys's cubic convolution with OpenCV's a, pixel centres aligned, edges repeated."""
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
    pixels = picture(9, 40, 60)
    assert resize_shorter(pixels, 40) is pixels


def test_pictures_too_narrow_for_a_jpeg_are_refused():
    assert resize_shorter(np.zeros((1, 655, 3), np.uint8), 100).shape == (100, 65500, 3)
    for shape in ((1, 656, 3), (656, 1, 3), (100, 65501, 3), (200, 200_000, 3)):
        with pytest.raises(DecodeError, match="too narrow to scale to a shorter side of 100"):
            resize_shorter(np.zeros(shape, np.uint8), 100)


@pytest.mark.parametrize(("height", "width", "top", "left"), [(8, 8, 0, 0), (8, 13, 0, 2), (15, 8, 3, 0)])
def test_the_centre_square_leaves_equal_margins(height, width, top, left):
    pixels = np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    square = centre_square(pixels, 8)
    assert np.array_equal(square, pixels[top : top + 8, left : left + 8])
    assert square.flags.c_contiguous


# Encoding


@pytest.mark.parametrize("quality", [1, 50, 90, 95, 100])
def test_encoding_has_the_quality_and_subsampling_that_it_says(quality):
    pixels = picture(10, 50, 70)
    with Image.open(io.BytesIO(encode(pixels, quality))) as image:
        reference = Image.open(io.BytesIO(encoded(pixels, quality=quality, subsampling=2)))
        assert image.quantization == reference.quantization  # libjpeg's tables for this quality
        assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
        assert image.size == (70, 50)
        assert "progressive" not in image.info
        assert not image.getexif()


def test_encoding_is_repeatable_and_close():
    pixels = picture(11, 50, 70)
    data = encode(pixels, 95)
    assert data == encode(pixels.copy(order="F"), 95)
    assert np.abs(decode(data, 1).pixels.astype(int) - pixels).mean() < 4
