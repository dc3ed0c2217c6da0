"""The DALI graph that reads, decodes and augments images, for all three placements.

    reader ─► decode ─► crop, mirror, − mean (with the noise folded in), ÷ std ─► images
       └────► label ────────────────────────────────────────────────────────────► digits

In placements "cpu" and "hybrid" the CPU decodes, and only the crop's region of the JPEG; "hybrid" then
moves the pixels to the GPU. In placement "gpu" the GPU decodes the whole image and then crops it, because
decoding a region on a GPU may crash (nvImageCodec issue 55). So all decoders are made in `_whole`,
`_region` and `_random_resized`, and the last two decode regions on the CPU only. Images stored at their
original size are decoded whole in every placement, and only the crop is scaled.

DALI numbers its operators in the order in which they are made, and a checkpoint names them so: if two calls
change places, saved checkpoints cannot be resumed.

Shapes: H, W stored size; S crop; V views (10 for ten crops, else absent); C = 3; L bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.math as dali_math
import nvidia.dali.types as types
from nvidia.dali import pipeline_def

from pipeline.dataset.manifest import ImageFormat
from pipeline.loader.placement import Placement
from pipeline.loader.views import (
    CENTER,
    FIVE_CORNERS,
    RESIZED_AREA,
    RESIZED_RATIO,
    RESIZED_TRIES,
    EvalView,
    TrainView,
)

READER = "shards"


@dataclass(frozen=True)
class ReaderSettings:
    """Settings of DALI's reader.

    Attributes:
        tars: Paths or `s3://` and `gs://` URLs of the tars, in reading order.
        indexes: Path or URL of the index of each tar.
        label_width: Number of digits in a .cls member; if `adopted`, in the largest label.
        adopted: Whether the dataset was written by another tool: the label is the digits that end the
            indexed bytes, and other text may precede them.
        seed: Seed of the shuffle buffer.
        buffer: Samples in the shuffle buffer, 0 to read in the order of the indexes.
        mmap: Map tars into memory instead of reading them.
    """

    tars: Sequence[str]
    indexes: Sequence[str]
    label_width: int
    adopted: bool = False
    seed: int = 0
    buffer: int = 0
    mmap: bool = True


_LINEAR: dict[str, Any] = {"interp_type": types.INTERP_LINEAR, "antialias": True}


@dataclass(frozen=True)
class OutputSettings:
    """Format of the outputs.

    Attributes:
        half: Images are float16 instead of float32.
        channels_last: Images are (H, W, C) instead of (C, H, W).
        keys: The graph has a third output, which identifies each sample.
    """

    half: bool = False
    channels_last: bool = False
    keys: bool = False


@pipeline_def(enable_checkpointing=True, exec_dynamic=True)  # type: ignore[untyped-decorator]
def build(
    reader: ReaderSettings,
    view: TrainView | EvalView,
    stored: ImageFormat,
    place: Placement,
    output: OutputSettings,
) -> tuple[Any, ...]:
    """Define the graph. Its outputs are images, digits and, if `output.keys`, sources.

    - images: float16 or float32 (C, S, S), (S, S, C) if channels last, with a leading V for ten crops.
    - digits: the label's bytes, uint8 (label_width,); the loader converts a whole batch at once, which costs
      next to nothing. Labels of an adopted dataset vary in length and are converted here: int32 (1,).
    - sources: `PATH:OFFSET:NAME` of the image, uint8 (L,), zero-padded.

    Args:
        reader: Settings of the reader.
        view: Crops, flips and normalization.
        stored: Size and mode of the stored images.
        place: Device that decodes and augments.
        output: Format of the outputs.
    """
    jpeg, digits = _read(reader)
    outputs = [
        _train(jpeg, view, stored, place, output)
        if isinstance(view, TrainView)
        else _evaluate(jpeg, view, stored, place, output),
        _last_digits(digits, reader.label_width) if reader.adopted else digits,
    ]
    if output.keys:
        outputs.append(fn.pad(fn.get_property(jpeg, key="source_info")))
    return tuple(outputs)


@pipeline_def(num_threads=1, exec_dynamic=True)  # type: ignore[untyped-decorator]
def raw(reader: ReaderSettings) -> tuple[Any, ...]:
    """Define a graph that reads the same samples without decoding them.

    Its outputs are image bytes, label bytes, and `PATH:OFFSET:NAME` of the image, uint8 (L,) each.
    """
    jpeg, digits = _read(reader)
    return jpeg, digits, fn.get_property(jpeg, key="source_info")


@pipeline_def(batch_size=1, num_threads=1, exec_dynamic=True)  # type: ignore[untyped-decorator]
def decoded(place: Placement) -> Any:
    """Define a graph that decodes JPEGs, fed to its input "jpeg", on the device on which `place` decodes."""
    image = _whole(fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1), place)
    return image.cpu() if place.device != "cpu" else image


def _read(settings: ReaderSettings) -> Any:
    shuffling: dict[str, Any] = {"random_shuffle": True, "initial_fill": settings.buffer}
    return fn.readers.webdataset(
        name=READER,
        paths=list(settings.tars),
        index_paths=list(settings.indexes),
        ext=["jpg", "cls"],
        missing_component_behavior="error",
        pad_last_batch=True,
        dont_use_mmap=not settings.mmap,
        seed=settings.seed,
        **(shuffling if settings.buffer else {}),
    )


def _last_digits(data: Any, width: int) -> Any:
    """Convert the last ASCII digits of the bytes, at most `width`, to a number, int32 (1,)."""
    start = data.shape(dtype=types.INT32) - width  # negative if there are fewer bytes
    last = fn.slice(data, start, [width], axes=[0], out_of_bounds_policy="pad", fill_values=0.0)
    digits = fn.cast(last, dtype=types.INT32) - 48
    is_digit = fn.cast((digits >= 0) & (digits <= 9), dtype=types.INT32)
    # Digit k counts only if all bytes from k to the end are digits. Row k ignores the bytes before k.
    before = types.Constant(np.tri(width, k=-1, dtype=np.int32))
    in_run = fn.reductions.min(dali_math.max(is_digit, before), axes=1)
    powers = types.Constant([10**k for k in reversed(range(width))], dtype=types.INT32)
    return fn.reductions.sum(digits * powers * in_run, keep_dims=True)


def _whole(jpeg: Any, place: Placement) -> Any:
    """Decode the whole image, on the GPU or the CPU, and return it on the device that augments."""
    if place.device == "gpu":
        load = place.hw_decoder_load
        return fn.decoders.image(jpeg, device="mixed", hw_decoder_load=load, adjust_orientation=False)
    return _moved(fn.decoders.image(jpeg, adjust_orientation=False), place)


def _region(jpeg: Any, place: Placement, side: int, x: Any, y: Any) -> Any:
    """Decode and crop a square of `side` pixels; the CPU decodes no more than that region.

    `x` and `y` are the corner's position as a fraction, 0..1, of image width or height minus `side`.
    """
    square = {"crop": (side, side), "crop_pos_x": x, "crop_pos_y": y}
    if place.device == "gpu":
        return fn.crop(_whole(jpeg, place), **square)
    return _moved(fn.decoders.image_crop(jpeg, adjust_orientation=False, **square), place)


def _moved(image: Any, place: Placement) -> Any:
    return image.gpu() if place.device == "hybrid" else image


def _train(jpeg: Any, view: TrainView, stored: ImageFormat, place: Placement, output: OutputSettings) -> Any:
    if view.augmentation == "random-resized-crop":
        image = _random_resized(jpeg, view.crop, place)
    else:
        image = _random_crop(jpeg, view.crop, stored, place)
    mirror = fn.random.coin_flip()
    shift: Any = types.Constant(list(view.mean), dtype=types.FLOAT)
    divisor = 1.0
    if view.noise is not None:
        z = fn.random.normal(shape=[3])
        mixing = types.Constant(view.noise.mixing)
        shift, divisor = shift - fn.reductions.sum(mixing * z, axes=1), view.noise.divisor
    std = [s * divisor for s in view.std]
    return fn.crop_mirror_normalize(image, mirror=mirror, mean=shift, std=std, **_layout(output))


def _random_crop(jpeg: Any, crop: int, stored: ImageFormat, place: Placement) -> Any:
    if stored.mode == "original":
        shape = _scaled_shape(jpeg, stored.size)
        corner = [_random_corner(side - float(crop)) for side in shape]
        return _scaled_crop(jpeg, shape, corner, crop, place)
    return _region(jpeg, place, crop, *_random_shares(jpeg, crop, stored))


def _random_resized(jpeg: Any, crop: int, place: Placement) -> Any:
    chosen: dict[str, Any] = {
        "random_area": RESIZED_AREA,
        "random_aspect_ratio": RESIZED_RATIO,
        "num_attempts": RESIZED_TRIES,
    }
    if place.device == "gpu":
        return fn.random_resized_crop(_whole(jpeg, place), size=(crop, crop), **_LINEAR, **chosen)
    part = fn.decoders.image_random_crop(jpeg, adjust_orientation=False, **chosen)
    return fn.resize(_moved(part, place), size=(crop, crop), **_LINEAR)


def _random_shares(jpeg: Any, crop: int, stored: ImageFormat) -> tuple[Any, Any]:
    """Draw the crop's corner (x, y) as fractions of the free space, each pixel position equally likely.

    The free space is the image's width or height minus the crop's. A fraction drawn uniformly from 0..1
    would give the first and last positions half their weight, because DALI rounds to the nearest pixel.
    """
    if stored.mode == "square":
        free = stored.size - crop
        shares = [k / max(free, 1) for k in range(free + 1)]
        return fn.random.uniform(values=shares), fn.random.uniform(values=shares)

    def share(side: Any) -> Any:
        free = side - float(crop)
        return fn.squeeze(_random_corner(free) / dali_math.max(free, 1.0), axes=0)

    height, width = _shape(jpeg)
    return share(width), share(height)


def _random_corner(free: Any) -> Any:
    """Draw a pixel position from 0..free, float32 (1,), each equally likely."""
    return dali_math.min(dali_math.floor(fn.random.uniform(range=[0.0, 1.0], shape=[1]) * (free + 1.0)), free)


def _shape(jpeg: Any) -> tuple[Any, Any]:
    """Read height and width of an encoded image, float32 (1,) each."""
    shape = fn.cast(fn.peek_image_shape(jpeg, adjust_orientation=False), dtype=types.FLOAT)
    return fn.slice(shape, 0, 1, axes=[0]), fn.slice(shape, 1, 1, axes=[0])


def _scaled_shape(jpeg: Any, size: int) -> tuple[Any, Any]:
    """Height and width after scaling the shorter side to `size`: whole numbers, float32 (1,) each."""
    height, width = _shape(jpeg)
    scale = float(size) / dali_math.min(height, width)
    return dali_math.floor(height * scale + 0.5), dali_math.floor(width * scale + 0.5)


def _scaled_crop(
    jpeg: Any, shape: tuple[Any, Any], corner: Sequence[Any], crop: int, place: Placement
) -> Any:
    """Scale an image to `shape` (height, width) and cut (crop, crop) at `corner` (y, x), in one operation.

    It uses antialiased linear interpolation, which on ImageNet photographs is as close to the area averaging
    of preparation as cubic is (mean difference 0.73 and 0.72 gray levels), with half the taps.
    """
    full, start = fn.cat(*shape), fn.cat(*corner)
    image, size = _whole(jpeg, place), [float(crop), float(crop)]
    region = {"roi_start": start / full, "roi_end": (start + float(crop)) / full, "roi_relative": True}
    return fn.resize(image, size=size, subpixel_scale=False, **region, **_LINEAR)


def _evaluate(
    jpeg: Any, view: EvalView, stored: ImageFormat, place: Placement, output: OutputSettings
) -> Any:
    if view.name == "full-resize":
        squeezed = fn.resize(_whole(jpeg, place), size=(view.crop, view.crop), **_LINEAR)
        return fn.crop_mirror_normalize(squeezed, **_layout(output))
    center = _center(jpeg, view, stored, place)
    corners = FIVE_CORNERS if view.name == "ten-crop" else FIVE_CORNERS[-1:]
    mirrors = (0, 1) if view.name == "ten-crop" else (0,)
    cut = {"crop": (view.crop, view.crop), **_layout(output)}
    crops = [
        fn.crop_mirror_normalize(center, crop_pos_x=x, crop_pos_y=y, mirror=mirror, **cut)
        for mirror in mirrors
        for x, y in corners
    ]
    return fn.stack(*crops) if len(crops) > 1 else crops[0]


def _center(jpeg: Any, view: EvalView, stored: ImageFormat, place: Placement) -> Any:
    """Return the center square from which crops are cut, or the center crop itself where it suffices."""
    if stored.mode == "original":
        shape = _scaled_shape(jpeg, stored.size)
        corner = [dali_math.floor((side - float(stored.size)) / 2.0) for side in shape]
        return _scaled_crop(jpeg, shape, corner, stored.size, place)
    # Of a non-square image, cut the center square first, so that rounding is that of stored squares.
    side = view.crop if stored.mode == "square" and view.name == "center" else stored.size
    return _region(jpeg, place, side, CENTER, CENTER)


def _layout(output: OutputSettings) -> dict[str, Any]:
    return {
        "dtype": types.FLOAT16 if output.half else types.FLOAT,
        "output_layout": "HWC" if output.channels_last else "CHW",
    }
