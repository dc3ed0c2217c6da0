"""The DALI graph: one description for every placement.

    reader ─► decode ─► crop, mirror, − mean (with the noise folded in), ÷ std ─► images
       └────► label ────────────────────────────────────────────────────────────► digits

It runs in three placements. Where the CPU decodes ("cpu", "hybrid"), only the crop's part of the JPEG is
read; "hybrid" then moves these bytes to the GPU. Where the GPU decodes ("gpu"), the whole image is
decoded and cropped after it, because decoding a region there may crash (nvImageCodec issue 55): every
decoder is made by `_whole` or `_region`, and `_region` knows the CPU only. Images kept at their original
size are decoded whole everywhere; of them only what the crop shows is scaled.

Shapes: H, W stored size; S crop; V views (10 for ten crops, else none); C = 3.
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
    """What the reader needs to know.

    Attributes:
        tars, indexes: paths in order, `s3://` and `gs://` among them.
        label_width: digits of a .cls member, or of the largest label where `adopted`.
        adopted: labels are the digits at the end of the indexed bytes, whatever stands before them.
        seed: of the shuffle buffer.
        buffer: samples in the shuffle buffer, 0 for the order of the indexes.
        mmap: map tars into memory instead of reading them.
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
    """Pixel layout of the images: float16 or float32, and HWC (channels last) or CHW."""

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
    """Describe the graph; outputs are images, digits and, on request, keys uint8 (L,).

    Digits are the label's bytes, uint8 (label_width,), which cost next to nothing to read once for a batch;
    of an adopted dataset, whose labels are of any length, they are the number already, int32 (1,).
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


def raw(reader: ReaderSettings) -> tuple[Any, ...]:
    """Describe a graph that reads the same samples and decodes nothing.

    Outputs are the image's and the label's bytes and `PATH:OFFSET:NAME` of the image, uint8 (L,) each.
    """
    jpeg, digits = _read(reader)
    return jpeg, digits, fn.get_property(jpeg, key="source_info")


def decoded(place: Placement) -> Any:
    """Describe a graph that decodes JPEGs fed to it as "jpeg", where `place` decodes."""
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
    """The run of at most `width` ASCII digits that ends the bytes → int32 (1,)."""
    start = data.shape(dtype=types.INT32) - width  # negative where there are fewer bytes
    last = fn.slice(data, start, [width], axes=[0], out_of_bounds_policy="pad", fill_values=0.0)
    digits = fn.cast(last, dtype=types.INT32) - 48
    is_digit = fn.cast((digits >= 0) & (digits <= 9), dtype=types.INT32)
    # Row k asks only for bytes k to the end: all of them must be digits for k to belong to the run.
    before = types.Constant(np.tri(width, k=-1, dtype=np.int32))
    in_run = fn.reductions.min(dali_math.max(is_digit, before), axes=1)
    powers = types.Constant([10**k for k in reversed(range(width))], dtype=types.INT32)
    return fn.reductions.sum(digits * powers * in_run, keep_dims=True)


def _whole(jpeg: Any, place: Placement) -> Any:
    """The whole image, decoded on the GPU or on the CPU, and where augmentation goes on."""
    if place.device == "gpu":
        load = place.hw_decoder_load
        return fn.decoders.image(jpeg, device="mixed", hw_decoder_load=load, adjust_orientation=False)
    return _moved(fn.decoders.image(jpeg, adjust_orientation=False), place)


def _region(jpeg: Any, place: Placement, side: int, x: Any, y: Any) -> Any:
    """A square of `side` at shares (x, y) of the free space; the CPU decodes no more than that."""
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
    """Corner (x, y) of the crop as shares of the free space, each pixel position equally likely.

    A share drawn uniformly from 0..1 would give the first and last positions half their weight,
    because DALI rounds it to the nearest pixel.
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
    """A pixel position in 0..free, float32 (1,), each equally likely."""
    return dali_math.min(dali_math.floor(fn.random.uniform(range=[0.0, 1.0], shape=[1]) * (free + 1.0)), free)


def _shape(jpeg: Any) -> tuple[Any, Any]:
    """Height and width of an encoded image, float32 (1,) each."""
    shape = fn.cast(fn.peek_image_shape(jpeg, adjust_orientation=False), dtype=types.FLOAT)
    return fn.slice(shape, 0, 1, axes=[0]), fn.slice(shape, 1, 1, axes=[0])


def _scaled_shape(jpeg: Any, size: int) -> tuple[Any, Any]:
    """Height and width of an image once its shorter side is `size`: whole numbers in float32 (1,) each."""
    height, width = _shape(jpeg)
    scale = float(size) / dali_math.min(height, width)
    return dali_math.floor(height * scale + 0.5), dali_math.floor(width * scale + 0.5)


def _scaled_crop(
    jpeg: Any, shape: tuple[Any, Any], corner: Sequence[Any], crop: int, place: Placement
) -> Any:
    """Scale an image to `shape` and cut (crop, crop) out of it at `corner` (y, x), in one go.

    Antialiased linear interpolation: on ImageNet photographs as close to the area averaging of
    preparation as cubic (mean difference 0.73 and 0.72 gray levels), with half the taps.
    """
    full, start = fn.cat(*shape), fn.cat(*corner)
    return fn.resize(
        _whole(jpeg, place),
        size=[float(crop), float(crop)],
        roi_start=start / full,
        roi_end=(start + float(crop)) / full,
        roi_relative=True,
        subpixel_scale=False,
        **_LINEAR,
    )


def _evaluate(
    jpeg: Any, view: EvalView, stored: ImageFormat, place: Placement, output: OutputSettings
) -> Any:
    if view.name == "full-resize":
        squeezed = fn.resize(_whole(jpeg, place), size=(view.crop, view.crop), **_LINEAR)
        return fn.crop_mirror_normalize(squeezed, **_layout(output))
    center = _center(jpeg, view, stored, place)
    corners = FIVE_CORNERS if view.name == "ten-crop" else FIVE_CORNERS[-1:]
    mirrors = (0, 1) if view.name == "ten-crop" else (0,)
    crops = [
        fn.crop_mirror_normalize(
            center,
            crop=(view.crop, view.crop),
            crop_pos_x=x,
            crop_pos_y=y,
            mirror=mirror,
            **_layout(output),
        )
        for mirror in mirrors
        for x, y in corners
    ]
    return fn.stack(*crops) if len(crops) > 1 else crops[0]


def _center(jpeg: Any, view: EvalView, stored: ImageFormat, place: Placement) -> Any:
    """The center square that crops are cut from, or already the center crop itself."""
    if stored.mode == "original":
        shape = _scaled_shape(jpeg, stored.size)
        corner = [dali_math.floor((side - float(stored.size)) / 2.0) for side in shape]
        return _scaled_crop(jpeg, shape, corner, stored.size, place)
    # Of a whole image the center square comes first, so that rounding is that of stored squares.
    side = view.crop if stored.mode == "square" and view.name == "center" else stored.size
    return _region(jpeg, place, side, CENTER, CENTER)


def _layout(output: OutputSettings) -> dict[str, Any]:
    return {
        "dtype": types.FLOAT16 if output.half else types.FLOAT,
        "output_layout": "HWC" if output.channels_last else "CHW",
    }
