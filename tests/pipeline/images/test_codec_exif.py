import io

import numpy as np
import pytest
from helpers.codec_files import exif, pillow, with_segment
from helpers.folders import draw_image, encoded
from PIL import Image, ImageOps

from pipeline.images.codec import decode, resize_shorter

PIXELS = draw_image(7, 20, 31)
KINDS = {
    "jpeg": {},
    "progressive": {"progressive": True},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "lzw": {"compression": "tiff_lzw"},
}


def oriented(kind, data):
    options = dict(KINDS[kind])
    form = {"jpeg": "JPEG", "progressive": "JPEG", "lzw": "TIFF"}.get(kind, kind)
    if form == "TIFF":
        info = Image.Exif()
        info[0x0112] = data
        return encoded(PIXELS, form, exif=info, **options)
    if form == "JPEG":
        return with_exif(encoded(PIXELS, **options), exif(data))
    return encoded(PIXELS, form, exif=exif(data), **options)


def with_exif(jpeg, data):
    return with_segment(jpeg, 0xE1, b"Exif\0\0" + data)


def turned(data):
    """The upright image by Pillow, an independent implementation."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def plain(kind):
    return pillow(encoded(PIXELS, **KINDS[kind])) if kind in ("jpeg", "progressive") else PIXELS


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_orientation_is_ignored_or_applied_as_asked(kind, orientation):
    data = oriented(kind, orientation)
    found = decode(data, 1)
    assert np.array_equal(found.pixels, plain(kind))
    assert found.shape == (20, 31)
    assert "rotated" not in found.repair
    found = decode(data, 1, exif_rotate=True)
    assert np.array_equal(found.pixels, turned(data))
    assert found.shape == found.pixels.shape[:2] == ((31, 20) if orientation >= 5 else (20, 31))
    assert found.pixels.flags.c_contiguous
    repair = f"rotated by EXIF orientation {orientation}"
    assert found.repair.endswith(repair) == ("rotated" in found.repair) == (orientation != 1)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("order", ["<", ">"])
def test_deep_tiffs_are_turned_and_left_alone_too(order, orientation):
    values = np.arange(0, 62000, 100, np.uint16).reshape(20, 31)
    info = Image.Exif()
    info[0x0112] = orientation
    data = encoded(values, "TIFF", exif=info)
    expected = np.repeat((values >> 8)[:, :, None], 3, axis=2)
    assert np.array_equal(decode(data, 1).pixels, expected)
    upright = expected if orientation == 1 else np.rot90(expected, -1)
    assert np.array_equal(decode(data, 1, exif_rotate=True).pixels, upright)


def test_a_turned_image_is_encoded_anew_and_says_what_else_it_was():
    found = decode(oriented("jpeg", 6), 1, exif_rotate=True, keep=True, size=4)
    assert found.jpeg == b""
    assert found.pixels.shape == (31, 20, 3)
    assert found.repair == "rotated by EXIF orientation 6"
    for mode, kept, repair in (("L", True, "gray JPEG"), ("CMYK", True, "CMYK"), ("CMYK", False, "CMYK")):
        data = with_exif(encoded(Image.fromarray(PIXELS).convert(mode)), exif(8))
        found = decode(data, 1, exif_rotate=True, keep=kept)
        assert found.repair == f"{repair} converted to RGB; rotated by EXIF orientation 8"
    stray = oriented("jpeg", 3)
    found = decode(stray[:2] + b"12345" + stray[2:], 1, exif_rotate=True)
    assert found.repair == "stray or odd bytes in the header removed; rotated by EXIF orientation 3"


def test_a_kept_image_keeps_its_orientation_unless_it_is_applied():
    data = oriented("jpeg", 6)
    assert decode(data, 1, keep=True).jpeg == data
    upright = oriented("jpeg", 1)
    assert decode(upright, 1, keep=True, exif_rotate=True).jpeg == upright


@pytest.mark.parametrize("orientation", [1, 2, 5, 6])
def test_a_smaller_scale_is_turned_as_the_whole_is(orientation):
    data = with_exif(encoded(draw_image(3, 121, 203)), exif(orientation))
    found = decode(data, 1, size=30, exif_rotate=True)
    assert sorted(found.pixels.shape[:2]) == [31, 51]
    assert found.shape == turned(data).shape[:2]
    small = resize_shorter(found.pixels, 30, found.shape).astype(int)
    whole = resize_shorter(turned(data), 30)
    assert small.shape == whole.shape
    assert np.abs(small - whole).mean() < 4


WITHOUT_ORIENTATION = {
    "zero": exif(0),
    "nine": exif(9),
    "negative": exif(-6, kind=9),
    "many values": exif(6, count=2**31),
    "a byte": exif(6, kind=1),
    "another tag": exif(6, tag=0x0100),
    "cut": exif(6)[:12],
    "no TIFF": b"anything",
    "directory outside": b"II*\0\xff\xff\xff\x7f" + exif(6)[8:],
    "directory of itself": b"II*\0\0\0\0\0",
}


@pytest.mark.parametrize("kind", ["jpeg", "PNG", "WEBP"])
@pytest.mark.parametrize("name", WITHOUT_ORIENTATION)
def test_damaged_or_odd_exif_turns_nothing(kind, name):
    if kind == "jpeg":
        data = with_exif(encoded(PIXELS), WITHOUT_ORIENTATION[name])
    else:
        data = encoded(PIXELS, kind, exif=WITHOUT_ORIENTATION[name], **KINDS[kind])
    found = decode(data, 1, exif_rotate=True, keep=True)
    assert np.array_equal(found.pixels, plain(kind))
    assert "rotated" not in found.repair
    assert (found.jpeg != b"") == (kind == "jpeg")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_short_and_long_in_either_byte_order_are_read(kind, order):
    data = with_exif(encoded(PIXELS), exif(6, kind=kind, order=order))
    assert decode(data, 1, exif_rotate=True).repair == "rotated by EXIF orientation 6"
