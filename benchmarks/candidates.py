"""Candidate implementations of decoding, resizing and encoding; the fastest of each step form the limit.

Pixels pass between steps as uint8 (H, W, 3) RGB arrays, so that any decoder can be combined with any encoder.
Chains inside one library, without conversions in between, are candidates too.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

SIZE = 256
QUALITY = 95
STEPS = ("decode", "resize and crop", "encode")

Pixels = Any
cv2.setNumThreads(1)


@dataclass(frozen=True)
class Candidate:
    """One implementation of a step.

    Attributes:
        step: One of STEPS, or "all" for a chain of all steps in one library.
        name: Library and setting, for tables.
        work: Function of one input (JPEG bytes or pixels) that returns the step's output.
        equal: Whether its result is as good as that of the others; only then may it be part of the limit.
    """

    step: str
    name: str
    work: Callable[[Any], Any]
    equal: bool = True


def candidates() -> tuple[list[Candidate], list[str]]:
    """Return every candidate that runs on this machine, and notes on why others do not."""
    found = [*_decoders(), *_resizers(), *_encoders(), *_chains()]
    more, missing = _turbojpeg()
    return found + more, missing


def _scaled_target(width: int, height: int) -> tuple[int, int]:
    shorter = min(width, height)
    return max(SIZE, round(width * SIZE / shorter)), max(SIZE, round(height * SIZE / shorter))


def _center(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    return np.ascontiguousarray(pixels[top : top + SIZE, left : left + SIZE])


def _decoders() -> list[Candidate]:
    def simple(**options: Any) -> Callable[[bytes], Pixels]:
        return lambda data: simplejpeg.decode_jpeg(data, "RGB", **options)

    def pillow(data: bytes) -> Pixels:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def pillow_draft(data: bytes) -> Pixels:
        return np.asarray(_drafted(data))

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

    def opencv(data: bytes) -> Pixels:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)

    at_least = {"min_height": SIZE, "min_width": SIZE}
    return [
        Candidate("decode", "simplejpeg", simple()),
        Candidate("decode", "simplejpeg, halved where twice as large", simple(**at_least, min_factor=2)),
        Candidate("decode", "simplejpeg, scaled to any eighth", simple(**at_least, min_factor=1), False),
        Candidate(
            "decode", "simplejpeg, fast DCT and upsampling", simple(fastdct=True, fastupsample=True), False
        ),
        Candidate("decode", "Pillow", pillow),
        Candidate("decode", "Pillow, draft", pillow_draft),
        Candidate("decode", "OpenCV", opencv),
    ]


def _drafted(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (SIZE, SIZE))  # decodes at 1/2, 1/4 or 1/8 while both sides stay at least SIZE
    return image.convert("RGB")


def _resizers() -> list[Candidate]:
    def opencv(method: int, ipp: bool = True) -> Callable[[Pixels], Pixels]:
        def work(pixels: Pixels) -> Pixels:
            cv2.ipp.setUseIPP(ipp)
            return _center(cv2.resize(pixels, _scaled_target(*pixels.shape[1::-1]), interpolation=method))

        return work

    def opencv_cropped(pixels: Pixels) -> Pixels:
        cv2.ipp.setUseIPP(True)
        square = np.ascontiguousarray(
            _square(pixels)
        )  # contiguous rows: a quarter faster than a strided view
        return cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    def pillow(method: Image.Resampling, **options: Any) -> Callable[[Pixels], Pixels]:
        return lambda pixels: np.asarray(_pillow_square(Image.fromarray(pixels), method, **options))

    def pillow_cropped(pixels: Pixels) -> Pixels:
        square = Image.fromarray(np.ascontiguousarray(_square(pixels)))
        return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BOX))

    bicubic, box = Image.Resampling.BICUBIC, Image.Resampling.BOX
    step = STEPS[1]
    return [
        Candidate(step, "OpenCV area", opencv(cv2.INTER_AREA)),
        Candidate(step, "OpenCV area, without IPP", opencv(cv2.INTER_AREA, ipp=False)),
        Candidate(step, "OpenCV area, cropped first", opencv_cropped),
        Candidate(step, "OpenCV linear (aliases)", opencv(cv2.INTER_LINEAR), False),
        Candidate(step, "Pillow bicubic", pillow(bicubic)),
        Candidate(step, "Pillow bicubic, gap 2", pillow(bicubic, reducing_gap=2.0)),
        Candidate(step, "Pillow box", pillow(box)),
        Candidate(step, "Pillow box, cropped first", pillow_cropped),
        Candidate(step, "torch bilinear with antialiasing, cropped first", _torch_cropped),
    ]


def _torch_cropped(pixels: Pixels) -> Pixels:
    import torch
    from torch.nn.functional import interpolate

    torch.set_num_threads(1)
    planes = torch.from_numpy(_square(pixels)).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last
    resized = interpolate(planes, (SIZE, SIZE), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def _square(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _pillow_square(image: Image.Image, method: Image.Resampling, **options: Any) -> Image.Image:
    image = image.resize(_scaled_target(*image.size), method, **options)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return image.crop((left, top, left + SIZE, top + SIZE))


def _encoders() -> list[Candidate]:
    def simple(pixels: Pixels) -> bytes:
        data: bytes = simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", "420")
        return data

    def pillow(pixels: Pixels) -> bytes:
        return _pillow_jpeg(Image.fromarray(pixels))

    def opencv(pixels: Pixels) -> bytes:
        return _opencv_jpeg(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))

    return [
        Candidate("encode", "simplejpeg", simple),
        Candidate("encode", "Pillow", pillow),
        Candidate("encode", "OpenCV", opencv),
    ]


def _pillow_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _opencv_jpeg(bgr: Pixels) -> bytes:
    return bytes(cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1])


def _chains() -> list[Candidate]:
    """Chains from decoding to encoding in one library, on its own image type."""

    def pillow(data: bytes) -> bytes:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return _pillow_jpeg(_pillow_square(image, Image.Resampling.BICUBIC))

    def pillow_draft(data: bytes) -> bytes:
        return _pillow_jpeg(_pillow_square(_drafted(data), Image.Resampling.BICUBIC))

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

    def opencv(data: bytes) -> bytes:
        cv2.ipp.setUseIPP(True)
        bgr: Pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        target = _scaled_target(*bgr.shape[1::-1])
        return _opencv_jpeg(_center(cv2.resize(bgr, target, interpolation=cv2.INTER_AREA)))

    return [
        Candidate("all", "Pillow throughout", pillow),
        Candidate("all", "Pillow throughout, draft", pillow_draft),
        Candidate("all", "OpenCV throughout", opencv),
    ]


def _turbojpeg() -> tuple[list[Candidate], list[str]]:
    try:
        import turbojpeg

        turbo = turbojpeg.TurboJPEG()
    except (ImportError, RuntimeError, OSError) as error:
        return [], [f"PyTurboJPEG was not tried: {str(error).splitlines()[0]}"]
    rgb, chroma = turbojpeg.TJPF_RGB, turbojpeg.TJSAMP_420
    return [
        Candidate("decode", "PyTurboJPEG", lambda data: turbo.decode(data, pixel_format=rgb)),
        Candidate(
            "encode",
            "PyTurboJPEG",
            lambda pixels: turbo.encode(pixels, QUALITY, pixel_format=rgb, jpeg_subsample=chroma),
        ),
    ], []
