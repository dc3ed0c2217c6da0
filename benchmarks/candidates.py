"""Candidates for decoding, resizing and encoding; the fastest of each step form the limit.

Only those are tried that were among the fastest of their step on some machine and cost no image quality.
Pixels pass between steps as uint8 (H, W, 3) RGB arrays.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn.functional import interpolate

SIZE = 256
QUALITY = 95

Pixels = Any
cv2.setNumThreads(1)


def _decode(data: bytes) -> Pixels:
    return simplejpeg.decode_jpeg(data, "RGB")


def _decode_halved(data: bytes) -> Pixels:
    return simplejpeg.decode_jpeg(data, "RGB", min_height=SIZE, min_width=SIZE, min_factor=2)


def _decode_opencv(data: bytes) -> Pixels:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _square(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _resize_opencv(pixels: Pixels) -> Pixels:
    square = np.ascontiguousarray(_square(pixels))  # contiguous rows: a quarter faster than a strided view
    return cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def _resize_pillow(pixels: Pixels) -> Pixels:
    square = Image.fromarray(np.ascontiguousarray(_square(pixels)))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BOX))


def _resize_torch(pixels: Pixels) -> Pixels:
    torch.set_num_threads(1)
    planes = torch.from_numpy(_square(pixels)).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last
    resized = interpolate(planes, (SIZE, SIZE), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def _encode(pixels: Pixels) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", "420")
    return data


def _encode_opencv(pixels: Pixels) -> bytes:
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1])


CANDIDATES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "decode": {
        "simplejpeg": _decode,
        "simplejpeg, halved where twice as large": _decode_halved,
        "OpenCV": _decode_opencv,
    },
    "resize and crop": {
        "OpenCV area, cropped first": _resize_opencv,
        "Pillow box, cropped first": _resize_pillow,
        "torch bilinear with antialiasing, cropped first": _resize_torch,
    },
    "encode": {"simplejpeg": _encode, "OpenCV": _encode_opencv},
}
"""Step → name of a candidate → function of a file's bytes or pixels that returns the step's output."""
