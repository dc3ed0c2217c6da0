"""The DALI graph that decodes and augments what it is fed: encoded images, and arrays that say what to cut.

    jpeg ─► decode ─► slice (start, size) ─► resize, if the sizes differ ─► mirror, − shift, ÷ divisors

A CPU decodes only the window's region of the JPEG. A GPU decodes the whole image and then cuts it, because
decoding a region on a GPU may crash (nvImageCodec issue 55).

Shapes: H, W stored size; S crop; V views (10 for ten crops, else absent); C = 3; L bytes.
"""

from typing import Any

import nvidia.dali.fn as fn
import nvidia.dali.types as types
from nvidia.dali import pipeline_def

from pipeline.dataset.manifest import ImageFormat
from pipeline.loader.augmentation import divisors, scales_first
from pipeline.loader.backend import OutputSettings
from pipeline.loader.placement import Placement
from pipeline.loader.views import EvalView, TrainView, five_corners

_LINEAR: dict[str, Any] = {"interp_type": types.INTERP_LINEAR, "antialias": True}


@pipeline_def(exec_dynamic=True)  # type: ignore[untyped-decorator]
def build(view: TrainView | EvalView, stored: ImageFormat, place: Placement, output: OutputSettings) -> Any:
    """Define the graph.

    Its output is float16 or float32 (C, S, S), or (S, S, C) if channels last, with a leading V for ten crops.
    Its inputs, each a batch, are:

    - jpeg: uint8 (L,), encoded images.
    - start, size: int32 (2,), corner (y, x) and size (height, width) of the window.
    - scaled: float32 (2,), height and width to which the image is scaled before the window is cut.
    - flip: int32 (), 1 to mirror the image.
    - shift: float32 (3,), subtracted from the colors.

    `scaled` exists only where `scales_first`, and `flip` and `shift` only for a `TrainView`.

    Args:
        view: Crops, flips and normalization.
        stored: Size and mode of the stored images.
        place: Device that decodes and augments.
        output: Format of the images.
    """
    jpeg = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1, no_copy=True)
    start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
    size = fn.external_source(name="size", dtype=types.INT32, ndim=1)
    if scales_first(view, stored):
        scaled = fn.external_source(name="scaled", dtype=types.FLOAT, ndim=1)
        image = _scaled_window(_whole(jpeg, place), start, size, scaled)
    elif place.gpu is not None:
        image = fn.slice(_whole(jpeg, place), start, size, axes=[0, 1])
    else:
        image = fn.decoders.image_slice(jpeg, start=start, shape=size, axes=[0, 1], adjust_orientation=False)
    if isinstance(view, EvalView):
        return _evaluate(image, view, stored, output)
    if view.augmentation == "random-resized-crop":
        image = fn.resize(image, size=(view.crop, view.crop), **_LINEAR)
    return fn.crop_mirror_normalize(
        image,
        mirror=fn.external_source(name="flip", dtype=types.INT32, ndim=0),
        mean=fn.external_source(name="shift", dtype=types.FLOAT, ndim=1),
        std=divisors(view).tolist(),
        **_layout(output),
    )


@pipeline_def(batch_size=1, num_threads=1, exec_dynamic=True)  # type: ignore[untyped-decorator]
def decoded(place: Placement) -> Any:
    """Define a graph that decodes the image fed to its input "jpeg", on the device of `place`."""
    image = _whole(fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1), place)
    return image if place.gpu is None else image.cpu()


def _whole(jpeg: Any, place: Placement) -> Any:
    """Decode the whole image."""
    if place.gpu is not None:
        load = place.hw_decoder_load
        return fn.decoders.image(jpeg, device="mixed", hw_decoder_load=load, adjust_orientation=False)
    return fn.decoders.image(jpeg, adjust_orientation=False)


def _scaled_window(image: Any, start: Any, size: Any, scaled: Any) -> Any:
    """Scale an image to `scaled` (height, width) and cut its window, in one operation.

    It uses antialiased linear interpolation, which on ImageNet photographs is as close to the area averaging
    of preparation as cubic is (mean difference 0.73 and 0.72 gray levels), with half the taps.
    """
    begin, extent = fn.cast(start, dtype=types.FLOAT), fn.cast(size, dtype=types.FLOAT)
    region = {"roi_start": begin / scaled, "roi_end": (begin + extent) / scaled, "roi_relative": True}
    return fn.resize(image, size=extent, subpixel_scale=False, **region, **_LINEAR)


def _evaluate(image: Any, view: EvalView, stored: ImageFormat, output: OutputSettings) -> Any:
    side = view.crop
    if view.name == "full-resize":
        image = fn.resize(image, size=(side, side), **_LINEAR)
    if view.name != "ten-crop":
        return fn.crop_mirror_normalize(image, **_layout(output))
    crops = [
        fn.slice(image, corner, (side, side), axes=[0, 1]) for corner in five_corners(stored.size - side)
    ]
    return fn.stack(
        *(fn.crop_mirror_normalize(c, mirror=mirror, **_layout(output)) for mirror in (0, 1) for c in crops)
    )


def _layout(output: OutputSettings) -> dict[str, Any]:
    return {
        "dtype": types.FLOAT16 if output.half else types.FLOAT,
        "output_layout": "HWC" if output.channels_last else "CHW",
    }
