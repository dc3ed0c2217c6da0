"""The DALI graph: one description for both devices.

    reader ─► decode ─► crop, mirror, − mean (with the noise folded in), ÷ std ─► images
       └────► label digits ─────────────────────────────────────────────────────► labels

On the CPU the decoder reads only the crop's part of the JPEG. On a GPU the whole picture is decoded
("mixed") and cropped after it, because decoding a region there may crash (nvImageCodec issue 55).
Pictures kept at their original size are decoded whole on either; of them only what the crop shows is
scaled.

Shapes: H, W stored size; S crop; V views (10 for ten crops, else none); C = 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.math as dali_math
import nvidia.dali.types as types
from nvidia.dali import pipeline_def

from pipeline.augment import CENTRE, FIVE_CORNERS, EvalView, TrainView
from pipeline.manifest import ImageFormat

Device = Literal["cpu", "gpu"]
READER = "shards"


@dataclass(frozen=True)
class ReaderSettings:
    """What the reader needs to know.

    Attributes:
        tars, indexes: paths in order.
        label_width: digits of a .cls member, or of the largest label where `adopted`.
        adopted: labels are the digits at the end of the indexed bytes, whatever stands before them.
        shard_id, num_shards: this process's global rank and the number of processes.
        shuffle: permute tars after every epoch, and samples within a buffer.
        order_seed: of the permutation of tars; the same on every rank.
        buffer: samples in the shuffle buffer.
    """

    tars: Sequence[str]
    indexes: Sequence[str]
    label_width: int
    adopted: bool = False
    shard_id: int = 0
    num_shards: int = 1
    shuffle: bool = False
    order_seed: int = 0
    buffer: int = 2048


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
    device: Device,
    output: OutputSettings,
) -> tuple[Any, ...]:
    """Describe the graph; outputs are images, labels int32 (1,) and, on request, keys uint8 (L,)."""
    jpeg, digits = _read(reader)
    outputs = [
        _train(jpeg, view, stored, device, output)
        if isinstance(view, TrainView)
        else _evaluate(jpeg, view, stored, device, output),
        (_last_digits if reader.adopted else _label)(digits, reader.label_width),
    ]
    if output.keys:
        outputs.append(fn.pad(fn.get_property(jpeg, key="source_info")))
    return tuple(outputs)


def _read(settings: ReaderSettings) -> Any:
    shuffling: dict[str, Any] = {
        "random_shuffle": True,
        "initial_fill": settings.buffer,
        "shuffle_after_epoch": True,
        "shuffle_after_epoch_seed": settings.order_seed,
    }
    return fn.readers.webdataset(
        name=READER,
        paths=list(settings.tars),
        index_paths=list(settings.indexes),
        ext=["jpg", "cls"],
        missing_component_behavior="error",
        shard_id=settings.shard_id,
        num_shards=settings.num_shards,
        # Every rank runs equally many batches; the loader cuts the repeated samples off again.
        pad_last_batch=True,
        # Evaluation keeps each rank's share: sums over ranks then add in one order, run after run.
        **(shuffling if settings.shuffle else {"stick_to_shard": True}),
    )


def _label(digits: Any, width: int) -> Any:
    """Fixed-width ASCII digits → int32 (1,)."""
    powers = types.Constant([10**k for k in reversed(range(width))], dtype=types.INT32)
    return fn.reductions.sum((fn.cast(digits, dtype=types.INT32) - 48) * powers, keep_dims=True)


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


def _train(jpeg: Any, view: TrainView, stored: ImageFormat, device: Device, output: OutputSettings) -> Any:
    picture, left_to_crop = _random_crop(jpeg, view.crop, stored, device)
    mirror = fn.random.coin_flip()
    shift: Any = types.Constant(list(view.mean), dtype=types.FLOAT)
    divisor = 1.0
    if view.noise is not None:
        z = fn.random.normal(shape=[3])
        mixing = types.Constant(view.noise.mixing)
        shift, divisor = shift - fn.reductions.sum(mixing * z, axes=1), view.noise.divisor
    std = [s * divisor for s in view.std]
    return fn.crop_mirror_normalize(
        picture, mirror=mirror, mean=shift, std=std, **left_to_crop, **_layout(output)
    )


def _random_crop(jpeg: Any, crop: int, stored: ImageFormat, device: Device) -> tuple[Any, dict[str, Any]]:
    """Decoded pixels, and what of the random crop is left to do to them."""
    if stored.mode == "original":
        shape = _scaled_shape(jpeg, stored.size)
        corner = [_random_corner(side - float(crop)) for side in shape]
        return _scaled_crop(jpeg, shape, corner, crop, device), {}
    x, y = _random_shares(jpeg, crop, stored)
    place: dict[str, Any] = {"crop": (crop, crop), "crop_pos_x": x, "crop_pos_y": y}
    if device == "cpu":
        return fn.decoders.image_crop(jpeg, adjust_orientation=False, **place), {}
    return fn.decoders.image(jpeg, device="mixed", adjust_orientation=False), place


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
    """Height and width of an encoded picture, float32 (1,) each."""
    shape = fn.cast(fn.peek_image_shape(jpeg, adjust_orientation=False), dtype=types.FLOAT)
    return fn.slice(shape, 0, 1, axes=[0]), fn.slice(shape, 1, 1, axes=[0])


def _scaled_shape(jpeg: Any, size: int) -> tuple[Any, Any]:
    """Height and width of a picture once its shorter side is `size`: whole numbers in float32 (1,) each."""
    height, width = _shape(jpeg)
    scale = float(size) / dali_math.min(height, width)
    return dali_math.floor(height * scale + 0.5), dali_math.floor(width * scale + 0.5)


def _scaled_crop(jpeg: Any, shape: tuple[Any, Any], corner: Sequence[Any], crop: int, device: Device) -> Any:
    """Scale a picture to `shape` and cut (crop, crop) out of it at `corner` (y, x), in one go.

    Antialiased linear interpolation: on ImageNet photographs as close to the area averaging of
    preparation as cubic (mean difference 0.73 and 0.72 grey levels), with half the taps.
    """
    whole = fn.decoders.image(jpeg, device="mixed" if device == "gpu" else "cpu", adjust_orientation=False)
    full, start = fn.cat(*shape), fn.cat(*corner)
    return fn.resize(
        whole,
        size=[float(crop), float(crop)],
        roi_start=start / full,
        roi_end=(start + float(crop)) / full,
        roi_relative=True,
        subpixel_scale=False,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def _evaluate(jpeg: Any, view: EvalView, stored: ImageFormat, device: Device, output: OutputSettings) -> Any:
    centre = _centre(jpeg, view, stored, device)
    corners = FIVE_CORNERS if view.name == "ten-crop" else FIVE_CORNERS[-1:]
    mirrors = (0, 1) if view.name == "ten-crop" else (0,)
    crops = [
        fn.crop_mirror_normalize(
            centre,
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


def _centre(jpeg: Any, view: EvalView, stored: ImageFormat, device: Device) -> Any:
    """The centre square that crops are cut from, or already the centre crop itself."""
    size, square = stored.size, stored.mode == "square"
    middle: dict[str, Any] = {"crop_pos_x": CENTRE, "crop_pos_y": CENTRE}
    if stored.mode == "original":
        shape = _scaled_shape(jpeg, size)
        corner = [dali_math.floor((side - float(size)) / 2.0) for side in shape]
        return _scaled_crop(jpeg, shape, corner, size, device)
    if device == "gpu":
        whole = fn.decoders.image(jpeg, device="mixed", adjust_orientation=False)
        return whole if square else fn.crop(whole, crop=(size, size), **middle)
    # Of a whole picture the centre square comes first, so that rounding is that of stored squares.
    side = view.crop if square and view.name == "centre" else size
    return fn.decoders.image_crop(jpeg, crop=(side, side), adjust_orientation=False, **middle)


def _layout(output: OutputSettings) -> dict[str, Any]:
    return {
        "dtype": types.FLOAT16 if output.half else types.FLOAT,
        "output_layout": "HWC" if output.channels_last else "CHW",
    }
