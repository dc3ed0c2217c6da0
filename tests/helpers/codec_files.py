"""Image files that break naive decoders, built byte by byte for the tests of the codec."""

import base64
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from helpers.folders import draw_image, encoded
from pipeline.images.codec import DecodeError, decode

JPEG = encoded(draw_image(1, 61, 83), quality=90)
START_OF_SCAN = JPEG.index(b"\xff\xda") + 14

# JPEGs of the 8 × 12 pixels in `coded_pixels`, written by libjpeg-turbo 3 (imagecodecs) and cjpeg.
LOSSLESS = base64.b85decode(
    b"|JeWT01iQ9Z(?NtWB>pF0095P01*fP2mlNNQV{@05dcCF0RO}Q7XSbQ0RR910000000000000041qlDz01N|C07n2q00961&-"
    b"woVKhzqiHBf4x)j_I*RR*dJR2rx?P-wi>L8^mQ2C5BI8mKi;YM|9Ys)JPqi_KITs5MY(pw&UDgH;Bq4OAMaHBe~0)j_I*RR*dJ"
    b"R2rx?P->vnL8^mQ28+#98mKi;YM|9Ys)JPqstr^cs5MY%ywyRfgH;Bq4OAMaHBf4x)j_I*RR)XAR2rx?P->vnL8^mQ2C5BI8mK"
    b"i;XuQ=ys)JPqstr^cs5MY(pw&UDgH;B<|Je"
)
LOSSLESS_GRAY = base64.b85decode(
    b"|JeWF01!$>Nk#wx0RR9200961|HA+a2mlBG3;_WV0RO}Q761VO0RR910000000000000F52>;pu2mt{A0RRBc>L{X$D58oeq@s"
    b"!_qKYV@ib^P=iYTIrD5Ro_D58oeqKZl=qKYV@iYTO_iYTIrD58o=D58oeqKYV_qKYV@iYTIrfB)G"
)
ARITHMETIC = base64.b85decode(
    b"|JeWF01!$>Nk#wx0RR9200961|JwjV00;&K2L=TQ2L}fU2?z=d6b%du3k(?&6Au&}8Xq1V8XO!TBrYc)A}k{u94I#_EHE)NG&C"
    b"P4IXyTsJT5adGXL8ELjeg12@DGi7!3^=G9erxGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUG"
    b"BW?k01*fP2mlNN0TBQK5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zf#0BVNgPF~=i@7<1o%&q4MH%IImRMi!eE&bKq+`5r"
    b"F-$V%i*#"
)


def coded_pixels():
    """Pixels of LOSSLESS, LOSSLESS_GRAY (R) and, nearly, ARITHMETIC: R = 20 x, G = 30 y, B = 10 (x + y)."""
    y, x = np.mgrid[:8, :12]
    return np.stack([20 * x, 30 * y, 10 * (x + y)], axis=-1).astype(np.uint8)


def pillow(data, mode="RGB"):
    """Decode with Pillow, without its warnings of damaged metadata."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert(mode))


def with_size(jpeg, height, width):
    """Rewrite the frame header of a baseline JPEG to claim another size."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def with_sampling(jpeg, *sampling):
    """Rewrite the sampling factors in the frame header of a baseline JPEG."""
    data = bytearray(jpeg)
    at = data.index(b"\xff\xc0") + 11
    for number, factors in enumerate(sampling):
        data[at + 3 * number] = factors
    return bytes(data)


def segments(jpeg):
    """Yield (marker, whole segment) of a JPEG written by Pillow or cjpeg; a scan includes its data."""
    at = 2
    while jpeg[at + 1] != 0xD9:
        marker = jpeg[at + 1]
        end = at + 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
        if marker == 0xDA:
            while jpeg[end] != 0xFF or jpeg[end + 1] == 0 or 0xD0 <= jpeg[end + 1] <= 0xD7:
                end += 1
        yield marker, jpeg[at:end]
        at = end


def with_segment(jpeg, marker, payload):
    """Insert a segment after the start marker of a JPEG."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


TABLES = (0xC4, 0xDB)


def planes_jpeg(planes, repeats=1):
    """A baseline JPEG of planes (Y, Cb, Cr), each in a scan of its own; the last scan is repeated."""
    grays = [dict(segments(encoded(plane, quality=90))) for plane in planes]
    height, width = planes[0].shape
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"".join(bytes([c, 0x11, 0]) for c in (1, 2, 3))
    tables = b"".join(part for marker, part in segments(encoded(planes[0], quality=90)) if marker in TABLES)
    scans = [
        b"\xff\xda\x00\x08\x01" + bytes([number]) + gray[0xDA][6:]
        for number, gray in enumerate(grays, start=1)
    ]
    head = b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + tables
    return head + b"".join(scans) + scans[-1] * (repeats - 1) + b"\xff\xd9"


def chunk(kind, data):
    """A PNG chunk with its CRC."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(raw, height, width, depth=8, color=0, before=b"", after=b"", level=-1):
    """A PNG of `height` unfiltered rows `raw`, with other chunks `before` and `after` IDAT."""
    rows = b"".join(b"\0" + raw[i * len(raw) // height : (i + 1) * len(raw) // height] for i in range(height))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)),
            before,
            chunk(b"IDAT", zlib.compress(rows, level)),
            after,
            chunk(b"IEND", b""),
        ]
    )


def png_header(height, width):
    """A 1-bit gray PNG that claims a size but has no pixel data."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"\x78\x9c") + chunk(b"IEND", b"")


def netpbm(magic, maxval, samples):
    """A binary PGM or PPM of uint8 or big-endian uint16 values."""
    height, width = samples.shape[:2]
    return b"%s %d %d %d\n" % (magic, width, height, maxval) + samples.tobytes()


def tiff(height, width, tags, data):
    """A little-endian TIFF of 8-bit gray, deflated: tags (tag → LONG value), then `data`."""
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1} | tags
    start = 8 + 2 + 12 * len(tags) + 4
    found = {"data": start, "length": len(data)}
    values = [(tag, found.get(tags[tag], tags[tag])) for tag in sorted(tags)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def zeros(megabytes):
    """Zlib stream of that many megabytes of zeros, a thousandth of their size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    adler = (megabytes << 20) % 65521 << 16 | 1
    return b"\x78\x9c" + block * megabytes + packer.flush() + struct.pack(">I", adler)


def attempt(data, **options):
    """Decode with a limit of one megapixel; return the image, or the error's message."""
    try:
        return decode(data, 1, **options)
    except DecodeError as error:
        return str(error)


def exif(value, kind=3, count=1, order="<", tag=0x0112):
    """EXIF data with one entry, by default the orientation as a SHORT."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    field = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I", 9: "i"}[kind], value)
    return mark + struct.pack(order + "IHHHI", 8, 1, tag, kind, count) + field + bytes(4)
