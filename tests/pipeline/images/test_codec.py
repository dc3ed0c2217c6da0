import io

import numpy as np
import pytest
from helpers.codec_files import (
    ARITHMETIC,
    JPEG,
    LOSSLESS,
    LOSSLESS_GRAY,
    START_OF_SCAN,
    coded_pixels,
    exif,
    pillow,
    planes_jpeg,
    segments,
    with_sampling,
    with_segment,
)
from helpers.folders import draw_image, encoded, refused
from PIL import Image, JpegImagePlugin

from pipeline.images.codec import DecodeError, decode, encode

# Decoding


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"restart_marker_blocks": 1},
        {"icc_profile": bytes(300_000)},
        {"keep_rgb": True},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_decode_as_pillow_decodes_them(mode, options):
    data = encoded(Image.fromarray(draw_image(2, 61, 83)).convert(mode), **options)
    found = decode(data, 1)
    assert found.repair == ""
    assert found.jpeg == b""
    assert found.shape == (61, 83)
    assert found.pixels.dtype == np.uint8
    assert np.array_equal(found.pixels, pillow(data))


def test_scans_of_one_plane_each_make_a_image():
    planes = np.asarray(Image.fromarray(draw_image(2, 40, 56)).convert("YCbCr"))
    data = planes_jpeg([planes[:, :, c] for c in range(3)])
    decoded = [pillow(encoded(planes[:, :, c], quality=90), "L") for c in range(3)]
    expected = Image.merge("YCbCr", [Image.fromarray(plane) for plane in decoded]).convert("RGB")
    found = decode(data, 1, keep=True)
    assert np.abs(found.pixels.astype(int) - np.asarray(expected)).max() <= 2  # the color conversion rounds
    assert found.jpeg == data


@pytest.mark.parametrize("data", [LOSSLESS, ARITHMETIC], ids=["lossless", "arithmetic"])
@pytest.mark.parametrize("size", [None, 2])
def test_rare_codings_decode_at_full_scale(data, size):
    found = decode(data, 1, size=size)
    assert np.abs(found.pixels.astype(int) - coded_pixels()).max() <= (0 if data is LOSSLESS else 12)
    assert np.array_equal(found.pixels, pillow(data))
    assert found.repair == ""


APPENDED = {
    "thumbnail": encoded(draw_image(3, 8, 8)),
    "scan markers": b"\xff\xda" * 300,
    "noise": np.random.default_rng(0).bytes(10_000),
}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("name", APPENDED)
def test_what_follows_the_end_mark_is_not_looked_at(name, progressive):
    data = encoded(draw_image(1, 61, 83), progressive=progressive)
    found = decode(data + APPENDED[name], 1, keep=True)
    assert np.array_equal(found.pixels, pillow(data))
    assert found.jpeg == data + APPENDED[name]
    assert found.repair == ""


def test_images_of_several_frames_are_their_first():
    frames = [Image.fromarray(draw_image(seed, 40, 56)) for seed in range(3)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(data, 1).pixels, pillow(encoded(frames[0])))


def test_large_metadata_costs_nothing():
    data = JPEG
    for number in range(40):
        data = with_segment(data, 0xE0 + number % 14 + 1, b"\xff\xda\xff\xc0\xff\xd9" * 10_000)
    found = decode(data, 1, keep=True)
    assert np.array_equal(found.pixels, pillow(JPEG))
    assert found.jpeg == data


def jfif_revision(jpeg, revision):
    at = jpeg.index(b"JFIF\0") + 5
    return jpeg[:at] + revision + jpeg[at + 2 :]


AT_TABLES = JPEG.index(b"\xff\xdb")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(JPEG[:2] + b"12345" + JPEG[2:], id="after the start"),
        pytest.param(JPEG[:AT_TABLES] + b"1\xff\x00\xff\xd0" + JPEG[AT_TABLES:], id="before the tables"),
        pytest.param(JPEG[: START_OF_SCAN - 14] + b"1" + JPEG[START_OF_SCAN - 14 :], id="before the scan"),
        pytest.param(jfif_revision(JPEG, b"\0\0"), id="JFIF 0.0"),
        pytest.param(jfif_revision(JPEG, b"\x07\x01"), id="JFIF 7.1"),
    ],
)
def test_stray_bytes_in_the_header_cost_no_pixel(data):
    found = decode(data, 1, keep=True)
    assert np.array_equal(found.pixels, pillow(JPEG))
    assert found.jpeg == JPEG  # what is kept is mended
    assert found.repair == "stray or odd bytes in the header removed"


@pytest.mark.parametrize("options", [{"subsampling": 0, "quality": 100}, {"quality": 90}])
@pytest.mark.parametrize("transform", [None, 0, 2])
def test_cmyk_becomes_rgb_as_in_pillow(transform, options):
    data = encoded(Image.fromarray(draw_image(6, 40, 56)).convert("CMYK"), **options)
    at = data.index(b"\xff\xee")
    assert data[at : at + 9] == b"\xff\xee\x00\x0eAdobe"
    # Readers treat the values as inverted with or without Adobe's marker.
    marker = b"" if transform is None else data[at : at + 15] + bytes([transform])
    data = data[:at] + marker + data[at + 16 :]
    found = decode(data, 1)
    assert "CMYK" in found.repair
    difference = np.abs(found.pixels.astype(int) - pillow(data))
    assert difference.max() <= 1  # one product is rounded
    assert difference.mean() < 0.5


# Bytes kept as they are


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}, {"exif": b"Exif\0\0" + exif(6)}],
)
def test_good_color_jpegs_are_kept(options):
    data = encoded(draw_image(2, 61, 83), **options)
    found = decode(data, 1, keep=True)
    assert found.jpeg == data
    assert found.repair == ""
    assert np.array_equal(found.pixels, decode(data, 1).pixels)


@pytest.mark.parametrize(
    ("data", "repair"),
    [
        pytest.param(encoded(draw_image(2, 61, 83)[:, :, 0]), "gray JPEG converted to RGB", id="gray"),
        pytest.param(
            encoded(Image.fromarray(draw_image(2, 61, 83)).convert("CMYK")),
            "CMYK converted to RGB",
            id="CMYK",
        ),
        pytest.param(encoded(draw_image(2, 61, 83), "PNG"), "PNG (RGB) converted", id="PNG"),
        pytest.param(LOSSLESS, "arithmetic-coded or lossless JPEG converted", id="lossless"),
    ],
)
def test_what_cannot_be_kept_comes_at_full_scale_to_be_encoded(data, repair):
    found = decode(data, 1, size=2, keep=True)
    assert found.jpeg == b""
    assert found.repair == repair
    assert found.pixels.shape[:2] == found.shape == pillow(data).shape[:2]


def test_what_must_be_encoded_has_to_fit_a_jpeg():
    longest, longer = (encoded(np.zeros((2, width, 3), np.uint8), "PNG") for width in (65500, 65501))
    assert len(encode(decode(longest, 1, keep=True).pixels, 90))
    message = "65501x2 pixels are more than a JPEG can hold"
    refused(lambda: decode(longer, 1, keep=True), message, error=DecodeError)
    assert decode(longer, 1).shape == (2, 65501)


def test_kept_images_are_decoded_at_the_scale_of_their_statistics():
    data = encoded(draw_image(2, 61, 83))
    found = decode(data, 1, size=14, keep=True)
    assert found.jpeg == data
    assert found.pixels.shape == (16, 21, 3)
    assert found.shape == (61, 83)


# Codings that are refused


@pytest.mark.parametrize("sampling", [0x14, 0x31])
@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_samplings_that_cannot_be_decoded_strictly_are_refused(kind, sampling):
    """Pillow silently decodes these to garbage, since the scan was coded for another subsampling."""
    more = {"save_all": True, "append_images": [Image.fromarray(draw_image(2))]} if kind == "MPO" else {}
    data = with_sampling(encoded(draw_image(1, 61, 83), kind, subsampling=0, **more), sampling)
    pillow(data)
    with pytest.raises(DecodeError, match="a chroma sampling that cannot be decoded strictly"):
        decode(data, 1)


def two_planes():
    """A JPEG of two components: luma and one chroma plane."""
    parts = list(segments(encoded(draw_image(1, 16, 16), subsampling=0)))
    made = [b"\xff\xd8"]
    for marker, part in parts:
        if marker == 0xC0:
            part = b"\xff\xc0\x00\x0e" + part[4:9] + b"\x02" + part[10:16]
        if marker == 0xDA:
            part = b"\xff\xda\x00\x0a\x02" + part[5:9] + b"\x00\x3f\x00" + part[14:]
        made.append(part)
    return b"".join(made) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(
            JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c"),
            "Unsupported JPEG data precision 12",
            id="12 bit",
        ),
        pytest.param(LOSSLESS_GRAY, "Unsupported color conversion request", id="lossless gray"),
        pytest.param(two_planes(), "not an image in a known format", id="two components"),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_jpegs_that_cannot_be_stored_are_refused(data, reason, keep):
    options = {"keep": keep, "size": 8, "exif_rotate": True}
    refused(lambda: decode(data, 1, **options), reason, error=DecodeError)


# Encoding


@pytest.mark.parametrize("quality", [1, 95, 100])
def test_encoding_has_the_quality_and_subsampling_that_it_says(quality):
    pixels = draw_image(10, 50, 70)
    with Image.open(io.BytesIO(encode(pixels, quality))) as image:
        reference = Image.open(io.BytesIO(encoded(pixels, quality=quality, subsampling=2)))
        assert image.quantization == reference.quantization  # libjpeg's tables for this quality
        assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
        assert image.size == (70, 50)
        assert "progressive" not in image.info
        assert not image.getexif()


def test_encoding_is_repeatable_and_close():
    pixels = draw_image(11, 50, 70)
    data = encode(pixels, 95)
    assert data == encode(pixels.copy(order="F"), 95)
    assert np.abs(decode(data, 1).pixels.astype(int) - pixels).mean() < 4
