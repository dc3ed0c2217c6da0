"""The DALI graph: one description for both devices.

    reader ─► decode ─► crop, mirror, − mean (with the noise folded in), ÷ std ─► images
       └────► label digits ─────────────────────────────────────────────────────► labels

On the CPU the decoder reads only the crop's part of the JPEG. On a GPU the whole picture is decoded
("mixed") and cropped after it, because decoding a region there may crash (nvImageCodec issue 55).

Shapes: H, W stored size; S crop; V views (10 for ten crops, else none); C = 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import nvidia.dali.fn as fn
import nvidia.dali.math as dali_math
import nvidia.dali.types as types
from nvidia.dali import pipeline_def

from pipeline.augment import CENTRE, FIVE_CORNERS, EvalView, TrainView

Device = Literal["cpu", "gpu"]
READER = "shards"


@dataclass(frozen=True)
class ReaderSettings:
    """What the reader needs to know.

    Attributes:
        tars, indexes: paths in order.
        label_width: digits of a .cls member.
        shard_id, num_shards: this process's global rank and the number of processes.
        shuffle: permute tars after every epoch, and samples within a buffer.
        order_seed: of the permutation of tars; the same on every rank.
        buffer: samples in the shuffle buffer.
    """

    tars: Sequence[str]
    indexes: Sequence[str]
    label_width: int
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
    size: int,
    square: bool,
    device: Device,
    output: OutputSettings,
) -> tuple[Any, ...]:
    """Describe the graph; outputs are images, labels int32 (1,) and, on request, keys uint8 (L,)."""
    jpeg, digits = _read(reader)
    outputs = [
        _train(jpeg, view, size, square, device, output)
        if isinstance(view, TrainView)
        else _evaluate(jpeg, view, size, square, device, output),
        _label(digits, reader.label_width),
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


def _train(
    jpeg: Any, view: TrainView, size: int, square: bool, device: Device, output: OutputSettings
) -> Any:
    x, y = _random_corner(jpeg, view.crop, size, square)
    mirror = fn.random.coin_flip()
    shift: Any = types.Constant(list(view.mean), dtype=types.FLOAT)
    divisor = 1.0
    if view.noise is not None:
        z = fn.random.normal(shape=[3])
        mixing = types.Constant(view.noise.mixing)
        shift, divisor = shift - fn.reductions.sum(mixing * z, axes=1), view.noise.divisor
    std = [s * divisor for s in view.std]
    if device == "cpu":
        crop = fn.decoders.image_crop(
            jpeg, crop=(view.crop, view.crop), crop_pos_x=x, crop_pos_y=y, adjust_orientation=False
        )
        return fn.crop_mirror_normalize(crop, mirror=mirror, mean=shift, std=std, **_layout(output))
    whole = fn.decoders.image(jpeg, device="mixed", adjust_orientation=False)
    return fn.crop_mirror_normalize(
        whole,
        crop=(view.crop, view.crop),
        crop_pos_x=x,
        crop_pos_y=y,
        mirror=mirror,
        mean=shift,
        std=std,
        **_layout(output),
    )


def _random_corner(jpeg: Any, crop: int, size: int, square: bool) -> tuple[Any, Any]:
    """Corner of the crop as shares of the free space, each pixel position equally likely.

    A share drawn uniformly from 0..1 would give the first and last positions half their weight,
    because DALI rounds it to the nearest pixel.
    """
    if square:
        free = size - crop
        shares = [k / max(free, 1) for k in range(free + 1)]
        return fn.random.uniform(values=shares), fn.random.uniform(values=shares)
    shape = fn.cast(fn.peek_image_shape(jpeg, adjust_orientation=False), dtype=types.FLOAT)

    def share(axis: int) -> Any:
        free = fn.slice(shape, axis, 1, axes=[0]) - float(crop)
        corner = dali_math.floor(fn.random.uniform(range=[0.0, 1.0], shape=[1]) * (free + 1.0))
        corner = dali_math.min(corner, free)
        return fn.squeeze(corner / dali_math.max(free, 1.0), axes=0)

    return share(1), share(0)


def _evaluate(
    jpeg: Any, view: EvalView, size: int, square: bool, device: Device, output: OutputSettings
) -> Any:
    middle: dict[str, Any] = {"crop_pos_x": CENTRE, "crop_pos_y": CENTRE}
    if device == "gpu":
        centre = fn.decoders.image(jpeg, device="mixed", adjust_orientation=False)
        if not square:
            centre = fn.crop(centre, crop=(size, size), **middle)
    else:
        # Of a whole picture the centre square comes first, so that rounding is that of stored squares.
        side = view.crop if square and view.name == "centre" else size
        centre = fn.decoders.image_crop(jpeg, crop=(side, side), adjust_orientation=False, **middle)
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


def _layout(output: OutputSettings) -> dict[str, Any]:
    return {
        "dtype": types.FLOAT16 if output.half else types.FLOAT,
        "output_layout": "HWC" if output.channels_last else "CHW",
    }
