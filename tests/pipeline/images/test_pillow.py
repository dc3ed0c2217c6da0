import io
import logging

import numpy as np
import pytest
from helpers.codec_files import chunk, netpbm, png, tiff, zeros
from helpers.folders import draw_image, encoded
from PIL import Image

from pipeline.images.codec import DecodeError, decode

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (20, 31), np.uint16)
DEEP_RGB = RNG.integers(0, 65536, (20, 31, 3)).astype(">u2")
SHADES = (np.arange(620).reshape(20, 31) % 128).astype(np.uint8)


def gray(values):
    return np.repeat(np.asarray(values)[:, :, None], 3, axis=2)


# Accepted


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_keep_every_pixel_whatever_the_file_is_called(kind):
    pixels = draw_image(3, 20, 31)
    found = decode(encoded(pixels, kind, **({"lossless": True} if kind == "WEBP" else {})), 1)
    assert np.array_equal(found.pixels, pixels)
    assert found.shape == (20, 31)
    assert found.repair == f"{kind} (RGB) converted"
    assert found.jpeg is None


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP"])
def test_only_jpegs_are_decoded_at_a_smaller_scale(kind, size):
    assert decode(encoded(draw_image(3, 20, 31), kind), 1, size=size).pixels.shape == (20, 31, 3)


def test_gif_palette_is_resolved():
    indexed = Image.fromarray(draw_image(4)).quantize(16)
    found = decode(encoded(indexed, "GIF"), 1)
    assert np.array_equal(found.pixels, np.asarray(indexed.convert("RGB")))
    assert found.repair == "GIF (P) converted"


def test_alpha_is_dropped_and_colors_stay():
    rgba = np.dstack([draw_image(5), np.full((48, 48), 7, np.uint8)])
    for kind in ("PNG", "TIFF"):
        found = decode(encoded(rgba, kind), 1)
        assert np.array_equal(found.pixels, rgba[:, :, :3])
        assert found.repair == f"{kind} (RGBA) converted"


def test_gray_with_alpha_is_gray():
    pixels = np.dstack([SHADES, np.full_like(SHADES, 7)])
    found = decode(encoded(Image.fromarray(pixels, "LA"), "PNG"), 1)
    assert np.array_equal(found.pixels, gray(SHADES))
    assert found.repair == "PNG (LA) converted"


def test_a_transparent_color_is_that_color():
    pixels = draw_image(5, 20, 31)
    key = chunk(b"tRNS", b"".join(bytes([0, value]) for value in pixels[0, 0]))
    assert np.array_equal(decode(png(pixels.tobytes(), 20, 31, color=2, before=key), 1).pixels, pixels)
    key = chunk(b"tRNS", b"\0\x05")
    assert np.array_equal(decode(png(SHADES.tobytes(), 20, 31, before=key), 1).pixels, gray(SHADES))


def test_a_palette_with_transparency_keeps_its_colors():
    palette = RNG.integers(0, 256, (128, 3), np.uint8)
    before = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", bytes(range(100)))
    found = decode(png(SHADES.tobytes(), 20, 31, color=3, before=before), 1)
    assert np.array_equal(found.pixels, palette[SHADES])
    assert found.repair == "PNG (P) converted"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "BMP"])
def test_one_bit_is_black_and_white(kind):
    bits = SHADES % 3 == 0
    found = decode(encoded(Image.fromarray(bits), kind), 1)
    assert np.array_equal(found.pixels, gray(bits * np.uint8(255)))
    assert found.repair == f"{kind} (1) converted"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_keeps_its_upper_byte(kind, dark):
    values = DEEP & 255 if dark else DEEP
    found = decode(encoded(values, kind), 1)
    assert np.array_equal(found.pixels, gray(values >> 8))


@pytest.mark.parametrize("maxval", [256, 1023, 4095, 65535])
def test_pgm_of_any_depth_is_scaled(maxval):
    values = (DEEP.astype(int) % (maxval + 1)).astype(">u2")
    found = decode(netpbm(b"P5", maxval, values), 1).pixels
    assert np.array_equal(found, gray(np.rint(values / maxval * 65535).astype(int) >> 8))


@pytest.mark.parametrize("maxval", [1, 100, 127, 254])
def test_pgm_of_few_shades_is_scaled(maxval):
    values = SHADES % (maxval + 1)
    found = decode(netpbm(b"P5", maxval, values), 1).pixels
    assert np.array_equal(found, gray(np.rint(values / maxval * 255)))


def test_16_bit_colors_keep_their_upper_byte():
    found = decode(png(DEEP_RGB.tobytes(), 20, 31, depth=16, color=2), 1)
    assert np.array_equal(found.pixels, DEEP_RGB >> 8)
    alpha = np.dstack([DEEP_RGB, DEEP_RGB[:, :, :1]]).astype(">u2")
    found = decode(png(alpha.tobytes(), 20, 31, depth=16, color=6), 1)
    assert np.array_equal(found.pixels, DEEP_RGB >> 8)
    found = decode(png(alpha[:, :, 2:].tobytes(), 20, 31, depth=16, color=4), 1)
    assert np.array_equal(found.pixels, gray(DEEP_RGB[:, :, 2] >> 8))
    found = decode(netpbm(b"P6", 65535, DEEP_RGB), 1)
    assert np.abs(found.pixels - (DEEP_RGB / 257)).max() <= 0.5


def test_inks_of_a_tiff_are_not_inverted():
    found = decode(encoded(Image.fromarray(draw_image(6)).convert("CMYK"), "TIFF"), 1)
    assert np.array_equal(found.pixels, draw_image(6))
    assert found.repair == "TIFF (CMYK) converted"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate"])
def test_compressed_tiffs_keep_every_pixel(compression):
    assert np.array_equal(
        decode(encoded(draw_image(6), "TIFF", compression=compression), 1).pixels, draw_image(6)
    )


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind, default):
    frames = [Image.new("RGB", (31, 20), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {"default_image": default} if kind == "PNG" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode(data, 1).pixels == [255, 0, 0]).all()


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(chunk(b"zTXt", b"a\0\0" + zeros(200)), id="zTXt"),
        pytest.param(chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(200)), id="iTXt"),
        pytest.param(chunk(b"iCCP", b"a\0\0" + zeros(200)), id="iCCP"),
        pytest.param(chunk(b"tEXt", b"a\0" + bytes(2 << 20)), id="tEXt"),
        pytest.param(chunk(b"gAMA", b"\0\0\0\1"), id="gamma"),
        pytest.param(chunk(b"prVt", b"anything"), id="private"),
    ],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_metadata_of_a_png_cost_it_nothing(place, metadata):
    data = png(SHADES.tobytes(), 20, 31, **{place: metadata})
    assert np.array_equal(decode(data, 1).pixels, gray(SHADES))


def test_bytes_behind_a_png_are_not_looked_at():
    assert np.array_equal(decode(encoded(draw_image(3), "PNG") + b"junk", 1).pixels, draw_image(3))


# Refused


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_samples_without_a_defined_white_are_refused(dtype):
    """Pillow would clip them to 0..255: a satellite image of floats would be all black or white."""
    with pytest.raises(
        DecodeError, match=r"TIFF \([IF]\): signed or 32-bit pixels have no defined white level"
    ):
        decode(encoded(SHADES.astype(dtype), "TIFF"), 1)
    with pytest.raises(DecodeError, match=r"PPM \(F\): signed or 32-bit pixels have no defined white level"):
        decode(b"Pf\n31 20\n-1.0\n" + SHADES.astype("<f4").tobytes(), 1)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "ICO", "TGA", "PCX", "DDS", "ICNS"])
def test_other_formats_are_unknown_though_pillow_reads_some(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    with pytest.raises(DecodeError) as refused:
        decode(encoded(draw_image(1, 64, 64), kind), 1)
    assert str(refused.value) == "not an image in a known format"


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 1\nMAXVAL 255\nENDHDR\n1234",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"8BPS\0\1" + bytes(500),
        b"%PDF-1.7\n" + bytes(500),
    ],
    ids=["HEIC", "PostScript", "PAM", "SVG", "Photoshop", "PDF"],
)
def test_formats_that_are_none_of_ours_are_unknown(data):
    with pytest.raises(DecodeError) as refused:
        decode(data, 1)
    assert str(refused.value) == "not an image in a known format"


@pytest.mark.parametrize("stored", [True, False])
def test_a_changed_byte_in_a_png_is_found_even_where_it_inflates(stored):
    """Pillow checks no CRC of pixel data, and stops before zlib's checksum once all rows are complete."""
    data = bytearray(png(SHADES.tobytes(), 20, 31, level=0 if stored else 9))
    at = data.index(b"IDAT") + (300 if stored else 20)
    data[at] ^= 1
    with pytest.raises(DecodeError) as refused:
        decode(bytes(data), 1)
    assert str(refused.value) == "corrupt PNG: wrong checksum of a chunk IDAT"


@pytest.mark.parametrize("cut", [1, 4, 12, 13, 200])
def test_a_png_without_its_end_mark_is_refused(cut):
    with pytest.raises(DecodeError) as refused:
        decode(encoded(draw_image(1), "PNG")[:-cut], 1)
    assert str(refused.value) == "premature end of PNG file"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (netpbm(b"P5", 0, SHADES), "ValueError: maxval must be greater than 0 and less than 65536"),
        (netpbm(b"P5", 70000, SHADES), "ValueError: maxval must be greater than 0 and less than 65536"),
        (b"P5 0 20 255\n" + bytes(20), "not an image in a known format"),
        (tiff(8, 8, {273: "data", 278: 8, 279: "length"}, b"no deflate"), "OSError: decoder error -2"),
    ],
    ids=["maxval 0", "maxval 70000", "width 0", "TIFF"],
)
def test_damaged_headers_are_refused(data, reason):
    with pytest.raises(DecodeError) as refused:
        decode(data, 1)
    assert str(refused.value) == reason


def test_whatever_pillow_raises_is_a_reason_of_one_line(monkeypatch):
    def broken(*_, **__):
        raise TypeError("'bytes' object\n  cannot be interpreted as an integer")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(DecodeError) as refused:
        decode(b"II*\0 a damaged TIFF", 1)
    assert str(refused.value) == "TypeError: 'bytes' object cannot be interpreted as an integer"


def test_nothing_is_said_besides_the_reason(capfd):
    many = tiff(8, 8, {273: "data", 277: 65535, 278: 8, 279: "length"}, b"")
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []  # as without pytest
    try:
        with pytest.raises(DecodeError):
            decode(many, 1)
    finally:
        root.handlers = handlers
    assert capfd.readouterr() == ("", "")


def test_color_profiles_are_ignored():
    profile = b"not a profile" * 100
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(draw_image(3), kind, icc_profile=profile, **options)
        with Image.open(io.BytesIO(data)) as image:
            assert image.info["icc_profile"] == profile
        assert np.array_equal(decode(data, 1).pixels, draw_image(3))
