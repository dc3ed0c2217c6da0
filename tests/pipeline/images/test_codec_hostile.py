import base64
import struct
from functools import partial

import numpy as np
import pytest
from helpers.codec_files import (
    JPEG,
    START_OF_SCAN,
    chunk,
    pillow,
    planes_jpeg,
    png,
    png_header,
    tiff,
    with_segment,
    with_size,
    zeros,
)
from helpers.folders import draw_image, encoded, needs_proc, python, refused
from PIL import Image

from pipeline.images.codec import DecodeError, decode

EVERYTHING = {"size": 5, "exif_rotate": True, "keep": True}
MODES = [{}, {"size": 5}, {"exif_rotate": True}, {"keep": True}, EVERYTHING]
in_every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: "+".join(mode) or "plain")


@in_every_mode
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty file", id="empty"),
        pytest.param(b"<html>404</html>", "not an image in a known format", id="html"),
        pytest.param(b"junk" + JPEG, "not an image in a known format", id="junk before the start"),
        pytest.param(JPEG[:200], "Truncated", id="header cut"),
        pytest.param(JPEG[:-2], "Premature end of JPEG file", id="end mark cut"),
        pytest.param(
            JPEG[:2] + b"12345" + JPEG[2:-40], "Premature end of JPEG file", id="stray bytes and cut"
        ),
        pytest.param(
            JPEG[:START_OF_SCAN] + b"\xff\xd3" * 40 + JPEG[START_OF_SCAN + 80 :], "Corrupt JPEG", id="scan"
        ),
        pytest.param(encoded(draw_image(1), "PNG")[:-400], "premature end of PNG file", id="PNG cut"),
        pytest.param(encoded(draw_image(1), "GIF")[:-400], "truncated", id="GIF cut"),
        pytest.param(encoded(draw_image(1), "WEBP")[:-200], "could not create decoder object", id="WebP cut"),
        pytest.param(encoded(draw_image(1), "TIFF")[:-400], "truncated", id="TIFF cut"),
        pytest.param(b"RIFF\0\0\0\0WEBPVP8X", "decoder", id="WebP header cut"),
    ],
)
def test_damaged_files_are_refused_with_a_reason(data, reason, mode):
    refused(lambda: decode(data, 1, **mode), reason, error=DecodeError)


# Decompression bombs


def test_the_limit_on_pixels_is_inclusive():
    assert decode(encoded(draw_image(1, 100, 100)), 0.01).pixels.shape == (100, 100, 3)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(DecodeError, match=r"101x100 pixels are more than 0\.01 megapixels"):
            decode(encoded(draw_image(1, 100, 101), kind), 0.01)


@pytest.mark.parametrize(
    ("side", "limit", "reason"),
    [(14_000, 100, "more than 100 megapixels"), (9_800, 100, "OSError"), (14_000, 200, "OSError")],
)
def test_the_limit_is_ours_alone(side, limit, reason):
    # Pillow itself would warn from 89 megapixels and refuse from 179, whatever the user allows.
    with pytest.raises(DecodeError, match=reason):
        decode(png_header(side, side), limit)


def gif(screen, frame):
    data = bytearray(encoded(Image.new("P", (48, 48)), "GIF"))
    data[6:10] = struct.pack("<HH", *screen)
    at = data.index(b"\x2c\0\0\0\0\x30\0\x30\0")
    data[at + 5 : at + 9] = struct.pack("<HH", *frame)
    return bytes(data)


def bmp(width, height):
    data = bytearray(encoded(draw_image(1), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def webp(kind):
    """A WebP that claims 16,383 × 16,383 pixels, or a canvas of 60,000 × 50,000."""
    frames = [Image.fromarray(draw_image(seed)) for seed in (1, 2)]
    if kind == "lossy":
        data = bytearray(encoded(frames[0], "WEBP"))
        data[26:30] = struct.pack("<HH", 16383, 16383)
    elif kind == "lossless":
        data = bytearray(encoded(frames[0], "WEBP", lossless=True))
        flags = struct.unpack("<I", data[21:25])[0] >> 28 << 28
        data[21:25] = struct.pack("<I", flags | 16382 | 16382 << 14)
    else:
        data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
        data[24:30] = struct.pack("<I", 59999)[:3] + struct.pack("<I", 49999)[:3]
    return bytes(data)


STRIP = {273: "data", 279: "length"}
TILE = {324: "data", 325: "length"}
HUGE = "60000x50000 pixels are more than 100 megapixels"
WEBP = "16383x16383 pixels are more than 100 megapixels"
SMALL = "(8, 8, 3)"
NOTES = [chunk(b"zTXt", b"a\0\0" + zeros(400)), chunk(b"iCCP", b"a\0\0" + zeros(400))]
BOMBS = {
    "JPEG": (with_size(JPEG, 50000, 60000), HUGE),
    "PNG": (png_header(50000, 60000), HUGE),
    "PNG notes": (png(bytes(64), 8, 8, before=b"".join(NOTES), after=NOTES[0]), SMALL),
    "PNG iTXt": (png(bytes(64), 8, 8, before=chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(400))), SMALL),
    "PNG rows": (
        png(bytes(64), 8, 8).replace(b"IEND", b"IDAT"),
        "corrupt PNG: wrong checksum of a chunk IDAT",
    ),
    "GIF screen": (gif((60000, 50000), (48, 48)), HUGE),
    "GIF frame": (gif((48, 48), (60000, 50000)), HUGE),
    "BMP": (bmp(60000, 50000), HUGE),
    "BMP upside down": (bmp(60000, -50000), HUGE),
    "PPM": (b"P6 60000 50000 255\n" + bytes(100), HUGE),
    "PBM in words": (b"P1 60000 50000\n" + b"0 " * 100, HUGE),
    "TIFF": (tiff(50000, 60000, STRIP | {278: 50000}, zeros(400)), HUGE),
    "TIFF turned": (tiff(60000, 50000, STRIP | {274: 6, 278: 50000}, zeros(400)), HUGE),
    "TIFF of all bits": (
        tiff(2**32 - 1, 2**32 - 1, STRIP | {278: 8}, zeros(1)),
        "4294967295x4294967295 pixels are more than 100 megapixels",
    ),
    "TIFF strip": (tiff(8, 8, STRIP | {278: 2**32 - 1}, zeros(400)), SMALL),
    "TIFF tile": (tiff(8, 8, TILE | {322: 60000, 323: 50000}, zeros(400)), HUGE),
    "WebP": (webp("lossy"), WEBP),
    "WebP without loss": (webp("lossless"), WEBP),
    "WebP canvas": (webp("animated"), HUGE),
}


@needs_proc
def test_bombs_are_refused_before_memory_is_allocated():
    code = """
import base64, resource, sys
from pipeline.images.codec import DecodeError, decode
files = [base64.b64decode(line) for line in sys.stdin.read().split()]
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (300 << 20),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in files:
    try:
        print(decode(data, 100, exif_rotate=True, keep=True, size=256).pixels.shape)
    except DecodeError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    process = python(code, stdin=-1, stdout=-1, stderr=-1)
    out, err = process.communicate("\n".join(base64.b64encode(data).decode() for data, _ in BOMBS.values()))
    assert err == ""
    *found, allocated = out.splitlines()
    assert dict(zip(BOMBS, found, strict=True)) == {name: result for name, (_, result) in BOMBS.items()}
    assert int(allocated) < 100  # MiB


@pytest.mark.parametrize("kind", ["plain", "progressive"])
def test_a_jpeg_of_very_many_scans_is_refused(kind):
    """Scans of a few bytes each cost a pass over the whole image: hours of a worker's time."""
    planes = [draw_image(2, 40, 56)[:, :, c] for c in range(3)]
    if kind == "plain":
        assert decode(planes_jpeg(planes, repeats=98), 1).pixels.shape == (40, 56, 3)  # 100 scans
        data, count = planes_jpeg(planes, repeats=5000), 5002
    else:
        whole = encoded(draw_image(2, 40, 56), progressive=True)
        last = whole.rindex(b"\xff\xda")
        count = whole.count(b"\xff\xda") + 5000
        data = whole[:-2] + whole[last:-2] * 5000 + whole[-2:]
    for mode in MODES:
        message = f"{count} scans in a JPEG are more than 100"
        refused(lambda mode=mode: decode(data, 1, **mode), message, error=DecodeError)


def test_a_thumbnail_of_many_scans_is_no_scan_of_the_image():
    data = encoded(draw_image(2, 40, 56), progressive=True)
    found = decode(with_segment(data, 0xE1, b"\xff\xda\0\x04" * 5000), 1)
    assert np.array_equal(found.pixels, pillow(data))


# Real files that break naive pipelines: decoded (height, width) and repair, or the reason of the error

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
    "null_height": "not an image in a known format",
    "png_rgba_with_jpeg_suffix_6x6": (6, 6, "PNG (RGBA) converted"),
    "png_with_jpeg_suffix_600x300": (300, 600, "PNG (RGB) converted"),
    "small_real_imagenet_75x56": (56, 75, ""),
    "truncated_100x100": "Premature end of JPEG file",
    "truncated_progressive_or_mpf_1512x2688": "Premature end of JPEG file",
    "twelve_bit": "Unsupported JPEG data precision 12",
    "zero_bytes": "empty file",
}
READABLE = [name for name, expected in HOSTILE.items() if not isinstance(expected, str)]
TURNED = {
    "exif_orient3_portrait_600x450": 3,
    "exif_orient6_portrait_600x450": 6,
    "exif_orient6_real_imagenet_can_opener": 6,
}
GRAY = {"gray_1000x1", "gray_1x1"}


def hostile(shared_data, name):
    return (shared_data / "hostile" / f"{name}.JPEG").read_bytes()


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - set(READABLE)))
def test_hostile_file_is_refused(shared_data, name):
    for mode in MODES:
        call = partial(decode, hostile(shared_data, name), 100, **mode)
        refused(call, HOSTILE[name], error=DecodeError)


@pytest.mark.parametrize("name", READABLE)
def test_hostile_file_is_read(shared_data, name):
    data = hostile(shared_data, name)
    height, width, repair = HOSTILE[name]
    plain = decode(data, 100)
    assert plain.pixels.shape == (height, width, 3)
    assert plain.repair == repair
    assert np.abs(plain.pixels - pillow(data).astype(int)).max() <= (1 if "CMYK" in repair else 0)

    turned = decode(data, 100, exif_rotate=True)
    assert np.array_equal(turned.pixels, np.rot90(plain.pixels, {3: 2, 6: -1, None: 0}[TURNED.get(name)]))
    assert turned.repair == (f"rotated by EXIF orientation {TURNED[name]}" if name in TURNED else repair)

    kept = decode(data, 100, keep=True, size=64)
    if repair.endswith("converted") or "CMYK" in repair or name in GRAY:
        assert kept.jpeg == b""
        assert np.array_equal(kept.pixels, plain.pixels)
        assert kept.repair == (repair or "gray JPEG converted to RGB")
    else:
        assert np.array_equal(pillow(kept.jpeg), plain.pixels)
        assert (kept.jpeg == data) == (repair == "")
        assert min(kept.pixels.shape[:2]) < 128 or min(plain.shape) < 128
        assert kept.repair == repair


def test_every_hostile_file_is_in_the_table(shared_data):
    assert {path.stem for path in (shared_data / "hostile").glob("*.JPEG")} == HOSTILE.keys()
