import numpy as np
import pytest
from helpers.codec_files import attempt, exif, netpbm, pillow, planes_jpeg, with_segment
from helpers.folders import draw_image, encoded
from hypothesis import example, given, strategies as st
from PIL import Image

from pipeline.images.codec import DecodeError, decode

EVERYTHING = {"size": 5, "exif_rotate": True, "keep": True}
MODES = [{}, {"size": 5}, {"exif_rotate": True}, {"keep": True}, EVERYTHING]


def small(kind="JPEG", mode="RGB", **options):
    return encoded(Image.fromarray(draw_image(8, 24, 31)).convert(mode), kind, **options)


JPEGS = {
    "baseline": small(),
    "no subsampling": small(subsampling=0),
    "progressive": small(progressive=True),
    "gray": small(mode="L"),
    "CMYK": small(mode="CMYK"),
    "restarts": small(restart_marker_blocks=1),
    "planes": planes_jpeg([draw_image(8, 24, 31)[:, :, c] for c in range(3)]),
    "EXIF": with_segment(small(), 0xE1, b"Exif\0\0" + exif(6)),
}
OTHERS = {
    "PNG": small("PNG"),
    "palette": small("PNG", "P"),
    "GIF": small("GIF"),
    "WebP": small("WEBP"),
    "WebP without loss": small("WEBP", lossless=True),
    "BMP": small("BMP"),
    "TIFF": small("TIFF"),
    "LZW": small("TIFF", compression="tiff_lzw"),
    "JPEG in TIFF": small("TIFF", compression="jpeg"),
    "PPM": small("PPM"),
    "PGM of 10 bits": netpbm(b"P5", 1023, np.arange(744, dtype=">u2").reshape(24, 31)),
    "MPO": small("MPO", save_all=True, append_images=[Image.fromarray(draw_image(9))]),
    "animation": small("WEBP", save_all=True, append_images=[Image.fromarray(draw_image(9, 24, 31))]),
    "turned PNG": small("PNG", exif=exif(6)),
}

# Most damage to the header is fatal; most damage to the scan shows only at its end. Both kinds are drawn.
flips = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=5)
cuts = st.sampled_from([0, 0, 0]) | st.integers(0, 40) | st.integers(0, 10**6)


def damaged(data, flips, cut):
    data = bytearray(data)
    for position, mask in flips:
        data[position % len(data)] ^= mask
    return bytes(data[: len(data) - cut % len(data)])


@given(st.sampled_from(sorted(JPEGS | OTHERS)), flips, cuts, st.sampled_from(MODES))
@example("baseline", [], 0, {})
@example("TIFF", [(0, 255)], 1, {})
def test_any_damage_is_either_decoded_or_a_decode_error(kind, flips, cut, mode):
    found = attempt(damaged((JPEGS | OTHERS)[kind], flips, cut), **mode)
    if isinstance(found, str):
        assert found.strip()
        assert len(found.splitlines()) == 1
        return
    assert found.pixels.dtype == np.uint8
    assert found.pixels.shape == (*found.pixels.shape[:2], 3)
    assert max(found.shape) >= max(found.pixels.shape[:2])
    if found.jpeg:
        assert np.array_equal(pillow(found.jpeg), decode(found.jpeg, 1).pixels)
    elif "keep" in mode:
        assert found.shape == found.pixels.shape[:2]


@given(st.binary(max_size=200), st.sampled_from([b"", *(data[:20] for data in (JPEGS | OTHERS).values())]))
def test_noise_is_a_decode_error(noise, head):
    with pytest.raises(DecodeError):
        decode(head + noise, 1)


@given(st.sampled_from(sorted(JPEGS)), flips, cuts)
def test_a_damaged_jpeg_that_decodes_is_what_pillow_sees(kind, flips, cut):
    """Pillow ignores libjpeg's warnings; files that `decode` accepts give none, so both agree."""
    data = damaged(JPEGS[kind], flips, cut)
    found = attempt(data)
    if isinstance(found, str) or data[2] != 0xFF:  # Pillow sees no JPEG here, but libjpeg finds a marker
        return
    tolerance = 1 if "CMYK" in found.repair else 0  # one product is rounded
    assert np.abs(found.pixels.astype(int) - pillow(data)).max() <= tolerance
