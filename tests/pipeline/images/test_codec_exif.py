import io

import numpy as np
import pytest
from helpers.codec_files import exif, netpbm, pillow, with_segment
from helpers.folders import draw_image, encoded
from hypothesis import given, strategies as st
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
def test_orientation_is_ignored(kind, orientation):
    found = decode(oriented(kind, orientation), 1)
    assert np.array_equal(found.pixels, plain(kind))
    assert found.shape == (20, 31)
    assert "rotated" not in found.repair


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_orientation_is_applied_where_asked(kind, orientation):
    data = oriented(kind, orientation)
    found = decode(data, 1, exif_rotate=True)
    assert np.array_equal(found.pixels, turned(data))
    assert found.shape == found.pixels.shape[:2] == ((31, 20) if orientation >= 5 else (20, 31))
    assert found.pixels.flags.c_contiguous
    assert ("rotated by EXIF orientation" in found.repair) == (orientation != 1)
    assert found.repair.endswith(f"orientation {orientation}") == (orientation != 1)


def test_each_orientation_says_where_the_first_row_and_column_are():
    """EXIF 2.3, 4.6.4 A: the sides of the upright image at which row 0 and column 0 lie."""
    sides = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }
    lines = {"top": np.s_[0], "bottom": np.s_[-1], "left": np.s_[:, 0], "right": np.s_[:, -1]}
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 0] = [0, 0, 255]
    pixels[0] = [255, 0, 0]
    for orientation, (row, column) in sides.items():
        found = decode(encoded(pixels, "WEBP", lossless=True, exif=exif(orientation)), 1, exif_rotate=True)
        assert (found.pixels[lines[row]] == [255, 0, 0]).all()
        assert (found.pixels[lines[column]][1:-1] == [0, 0, 255]).all()


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
    assert found.jpeg is None
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
    "large": exif(65535),
    "negative": exif(-6, kind=9),
    "many values": exif(6, count=2**31),
    "a byte": exif(6, kind=1),
    "another tag": exif(6, tag=0x0100),
    "cut": exif(6)[:12],
    "no TIFF": b"anything",
    "mark alone": b"II*\0",
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
    assert (found.jpeg is not None) == (kind == "jpeg")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_short_and_long_in_either_byte_order_are_read(kind, order):
    data = with_exif(encoded(PIXELS), exif(6, kind=kind, order=order))
    assert decode(data, 1, exif_rotate=True).repair == "rotated by EXIF orientation 6"


@pytest.mark.parametrize("data", [encoded(PIXELS, "GIF"), encoded(PIXELS, "BMP"), netpbm(b"P6", 255, PIXELS)])
def test_formats_without_exif_stay_as_they_are(data):
    assert np.array_equal(decode(data, 1, exif_rotate=True).pixels, decode(data, 1).pixels)


@given(
    st.sampled_from(["jpeg", "progressive", "PNG", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=10),
)
def test_no_damage_to_exif_is_an_error(kind, changes):
    """Damaged EXIF may change the orientation, but never the pixels."""
    broken = bytearray(exif(6))
    for at, value in changes:
        broken[at % len(broken)] = value
    if kind in ("jpeg", "progressive"):
        data = with_exif(encoded(PIXELS, **KINDS[kind]), bytes(broken))
    else:
        data = encoded(PIXELS, kind, exif=bytes(broken), **KINDS[kind])
    found = decode(data, 1, exif_rotate=True).pixels
    ways = [plain(kind)[::a, ::b] for a in (1, -1) for b in (1, -1)]
    ways += [way.swapaxes(0, 1) for way in ways]
    assert any(np.array_equal(found, way) for way in ways)
