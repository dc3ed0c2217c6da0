import io
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.codec_files import chunk, netpbm, png, tiff, zeros
from helpers.folders import draw_image, encoded, refused
from PIL import Image, PngImagePlugin, features

from pipeline.images.codec import DecodeError, decode

RNG = np.random.default_rng(0)
PIXELS = draw_image(3, 20, 31)
DEEP = RNG.integers(0, 65536, (20, 31), np.uint16)
DEEP_RGB = RNG.integers(0, 65536, (20, 31, 3)).astype(">u2")
DEEP_RGBA = np.dstack([DEEP_RGB, DEEP_RGB[:, :, :1]]).astype(">u2")
SHADES = (np.arange(620).reshape(20, 31) % 128).astype(np.uint8)
BITS = SHADES % 3 == 0
PALETTE = RNG.integers(0, 256, (128, 3), np.uint8)
INDEXED = Image.fromarray(PIXELS).quantize(16)
ALPHA = SHADES % 2 * np.uint8(255)
TRANSPARENT = {
    "PNG with a palette and transparency",
    "PNG with alpha",
    "TIFF with alpha",
    "WEBP with alpha",
    "PNG gray with alpha",
    "PNG with half of it hidden",
    "GIF with a transparent color",
    "PNG with a transparent color",
}


def on_white(pixels, hidden):
    return np.where(np.asarray(hidden)[:, :, None], np.uint8(255), pixels)


def gray(values):
    return np.repeat(np.asarray(values)[:, :, None], 3, axis=2)


def indexed_png():
    transparency = chunk(b"PLTE", PALETTE.tobytes()) + chunk(b"tRNS", bytes(100))
    return png(SHADES.tobytes(), 20, 31, color=3, before=transparency)


# Accepted: file, pixels, mode in Pillow

ACCEPTED = {
    **{kind: (encoded(PIXELS, kind), PIXELS, "RGB") for kind in ("PNG", "BMP", "TIFF", "PPM")},
    "WEBP": (encoded(PIXELS, "WEBP", lossless=True), PIXELS, "RGB"),
    **{
        f"TIFF {way}": (encoded(PIXELS, "TIFF", compression=way), PIXELS, "RGB")
        for way in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate")
    },
    "GIF": (encoded(INDEXED, "GIF"), np.asarray(INDEXED.convert("RGB")), "P"),
    "PNG with a palette and transparency": (indexed_png(), on_white(PALETTE[SHADES], SHADES < 100), "P"),
    **{
        f"{kind} with alpha": (
            encoded(np.dstack([PIXELS, ALPHA]), kind, **options),
            on_white(PIXELS, ALPHA == 0),
            "RGBA",
        )
        for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True}))
    },
    "PNG gray with alpha": (
        encoded(Image.fromarray(np.dstack([SHADES, ALPHA]), "LA"), "PNG"),
        on_white(gray(SHADES), ALPHA == 0),
        "LA",
    ),
    "PNG with alpha that hides nothing": (encoded(np.dstack([PIXELS, ALPHA | 255]), "PNG"), PIXELS, "RGBA"),
    "PNG with half of it hidden": (
        png(np.full((20, 31, 2), [0, 51], np.uint8).tobytes(), 20, 31, color=4),
        np.full((20, 31, 3), 204),
        "LA",
    ),
    "GIF with a transparent color": (
        encoded(INDEXED, "GIF", transparency=3),
        on_white(np.asarray(INDEXED.convert("RGB")), np.asarray(INDEXED) == 3),
        "P",
    ),
    "PNG with a transparent color": (
        png(
            PIXELS.tobytes(),
            20,
            31,
            color=2,
            before=chunk(b"tRNS", b"".join(bytes([0, value]) for value in PIXELS[0, 0])),
        ),
        on_white(PIXELS, np.equal(PIXELS, PIXELS[0, 0]).all(axis=2)),
        "RGB",
    ),
    **{
        f"{kind} of one bit": (encoded(Image.fromarray(BITS), kind), gray(BITS * np.uint8(255)), "1")
        for kind in ("PNG", "TIFF", "PPM", "BMP")
    },
    **{
        f"{kind} of 16 bits, up to {values.max()}": (encoded(values, kind), gray(values >> 8), None)
        for kind in ("PNG", "TIFF", "PPM")
        for values in (DEEP, DEEP & 255)
    },
    "PNG of 16 bits in color": (png(DEEP_RGB.tobytes(), 20, 31, 16, 2), DEEP_RGB >> 8, None),
    "PNG of 16 bits with a transparent color": (
        png(DEEP_RGB.tobytes(), 20, 31, 16, 2, before=chunk(b"tRNS", bytes(6))),
        DEEP_RGB >> 8,
        None,
    ),
    "TIFF of inks": (encoded(Image.fromarray(PIXELS).convert("CMYK"), "TIFF"), PIXELS, "CMYK"),
    "PNG and junk": (encoded(PIXELS, "PNG") + b"junk", PIXELS, "RGB"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_pixel_is_kept_whatever_the_file_is_called(name):
    data, expected, mode = ACCEPTED[name]
    found = decode(data, 1, size=4)  # only JPEGs are decoded at a smaller scale
    assert np.array_equal(found.pixels, expected)
    assert found.shape == (20, 31)
    assert found.repair.startswith(name.split()[0])
    hidden = name in TRANSPARENT
    assert ("transparent pixels laid on white" in found.repair) == hidden
    assert mode is None or f" ({mode}) converted" in found.repair
    assert found.jpeg == b""


@pytest.mark.parametrize("maxval", [1, 100, 254, 256, 1023, 65535])
def test_pgm_of_any_depth_is_scaled(maxval):
    if maxval < 256:
        values = SHADES % (maxval + 1)
        expected = np.rint(values / maxval * 255)
    else:
        values = (DEEP.astype(int) % (maxval + 1)).astype(">u2")
        expected = np.rint(values / maxval * 65535).astype(int) >> 8
    assert np.array_equal(decode(netpbm(b"P5", maxval, values), 1).pixels, gray(expected))


def test_ppm_of_16_bits_is_rounded():
    found = decode(netpbm(b"P6", 65535, DEEP_RGB), 1)
    assert np.abs(found.pixels - (DEEP_RGB / 257)).max() <= 0.5


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


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_color_profiles_are_ignored(kind, options):
    profile = b"not a profile" * 100
    data = encoded(PIXELS, kind, icc_profile=profile, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["icc_profile"] == profile
    assert np.array_equal(decode(data, 1).pixels, PIXELS)


# Refused: file, reason


def changed(data, at):
    """`data` with another bit in a byte after its first IDAT."""
    at += data.index(b"IDAT")
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


UNKNOWN = "not an image in a known format"
NO_WHITE = "signed or 32-bit pixels have no defined white level"
CHECKSUM = "corrupt PNG: wrong checksum of a chunk IDAT"
MAXVAL = "ValueError: maxval must be greater than 0 and less than 65536"
REFUSED = {
    # Pillow would clip them to 0..255: a satellite image of floats would be all black or white.
    "TIFF of int32": (encoded(SHADES.astype(np.int32), "TIFF"), f"TIFF (I): {NO_WHITE}"),
    "TIFF of floats": (encoded(SHADES.astype(np.float32), "TIFF"), f"TIFF (F): {NO_WHITE}"),
    "PFM": (b"Pf\n31 20\n-1.0\n" + SHADES.astype("<f4").tobytes(), f"PPM (F): {NO_WHITE}"),
    "JPEG XL": (b"\xff\x0a" + bytes(500), UNKNOWN),
    "a film": (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(500), UNKNOWN),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNKNOWN),
    "Photoshop": (b"8BPS\0\1" + bytes(500), UNKNOWN),
    # Pillow checks no CRC of pixel data, and stops before zlib's checksum once all rows are complete.
    "PNG changed": (changed(png(SHADES.tobytes(), 20, 31, level=9), 20), CHECKSUM),
    "PNG changed where it inflates": (changed(png(SHADES.tobytes(), 20, 31, level=0), 300), CHECKSUM),
    **{
        f"PNG without its last {cut} bytes": (encoded(PIXELS, "PNG")[:-cut], "premature end of PNG file")
        for cut in (1, 4, 12, 13, 200)
    },
    "PGM with maxval 0": (netpbm(b"P5", 0, SHADES), MAXVAL),
    "PGM with maxval 70000": (netpbm(b"P5", 70000, SHADES), MAXVAL),
    "PGM with width 0": (b"P5 0 20 255\n" + bytes(20), UNKNOWN),
    "TIFF": (tiff(8, 8, {273: "data", 278: 8, 279: "length"}, b"no deflate"), "OSError: decoder error -2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_damaged_and_undefined_images_are_refused(name):
    data, reason = REFUSED[name]
    refused(lambda: decode(data, 1), reason, error=DecodeError)


@pytest.mark.parametrize("kind", ["JPEG2000", "ICO", "TGA", "DDS"])
def test_other_formats_are_unknown_though_pillow_reads_some(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    with pytest.raises(DecodeError, match=UNKNOWN):
        decode(encoded(draw_image(1, 64, 64), kind), 1)


# In a HEIF container


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
HEIC = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"


@needs_avif
def test_avif_is_decoded_completely_or_refused():
    frames = [Image.fromarray(PIXELS), Image.new("RGB", (31, 20), "lime")]
    lossless = {"quality": 100, "subsampling": "4:4:4"}
    for data in (
        encoded(frames[0], "AVIF", **lossless),
        encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:], **lossless),
    ):
        found = decode(data, 1)
        assert np.abs(found.pixels.astype(int) - PIXELS).max() <= 4  # AVIF's RGB is not exact
        assert found.repair == "AVIF (RGB) converted"
    data = encoded(np.dstack([PIXELS, ALPHA]), "AVIF", **lossless)
    assert (decode(data, 1).pixels[ALPHA == 0] == 255).all()
    refused(lambda: decode(data, 1e-6), "31x20 pixels are more than", error=DecodeError)
    for size, reason in ((len(data) - 1, "Truncated data"), (100, "truncated or damaged AVIF file")):
        refused(lambda size=size: decode(data[:size], 1), reason, error=DecodeError)


@pytest.mark.parametrize(
    ("data", "module", "package"),
    [
        (HEIC, "pillow_heif", "reading HEIC needs the package pillow-heif"),
        (HEIC.replace(b"heic", b"avif"), "pillow_avif", "reading AVIF needs the package pillow-avif-plugin"),
    ],
)
def test_a_plugin_that_is_not_installed_is_named(monkeypatch, data, module, package):
    monkeypatch.setattr(features, "check", lambda _: False)
    monkeypatch.setitem(sys.modules, module, None)
    refused(lambda: decode(data + bytes(500), 1), package, "pip install", error=DecodeError)


def test_heic_is_read_with_the_plugin(monkeypatch):
    def register(**_):
        Image.register_open("HEIF", lambda file, _: PngImagePlugin.PngImageFile(io.BytesIO(file.read()[24:])))

    monkeypatch.setattr(Image, "OPEN", Image.OPEN.copy())
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    assert np.array_equal(decode(HEIC + encoded(PIXELS, "PNG"), 1).pixels, PIXELS)


def test_whatever_pillow_raises_is_a_reason_of_one_line(monkeypatch):
    def broken(*_, **__):
        raise TypeError("'bytes' object\n  cannot be interpreted as an integer")

    monkeypatch.setattr(Image, "open", broken)
    message = "TypeError: 'bytes' object cannot be interpreted as an integer"
    refused(lambda: decode(b"II*\0 a damaged TIFF", 1), message, error=DecodeError)


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
