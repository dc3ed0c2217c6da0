"""Feeder for SPDL, run by benchmarks/loader.py in a separate environment.

Threads decode, crop and scale with FFmpeg. Batches are uint8, NHWC, without mean subtraction and color noise.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path

import spdl.io
from feeder import AREA, CROP, RATIO, SIZE, Order, read_images, read_order, serve
from spdl.pipeline import PipelineBuilder


def main() -> None:
    serve(batches(read_order(__doc__)))


def batches(order: Order) -> Iterator[int]:
    """Yield the size of each batch; the images of the tars are read into memory first."""
    images = read_images(Path(order.data, "train"))
    filters = _paper if order.augmentation == "paper" else _resized

    def decode(data: bytes):  # type: ignore[no-untyped-def]
        return spdl.io.decode_packets(spdl.io.demux_image(data), filter_desc=filters(order.original))

    def join(frames):  # type: ignore[no-untyped-def]
        return spdl.io.to_numpy(spdl.io.convert_frames(frames))

    def endless() -> Iterator[bytes]:
        while True:
            yield from random.sample(images, len(images))

    built = (
        PipelineBuilder()
        .add_source(endless())
        .pipe(decode, concurrency=order.threads)
        .aggregate(order.batch)
        .pipe(join)
        .add_sink(2)
        .build(num_threads=order.threads)
    )
    with built.auto_stop():
        for batch in built:
            assert batch.shape[1:] == (CROP, CROP, 3), batch.shape
            yield len(batch)


def _paper(original: bool) -> str:
    scale = f"scale='if(gt(iw,ih),-1,{SIZE})':'if(gt(iw,ih),{SIZE},-1)':flags=bilinear," if original else ""
    x, y = random.random(), random.random()
    return f"{scale}crop={CROP}:{CROP}:(iw-{CROP})*{x}:(ih-{CROP})*{y}{_flip()},format=pix_fmts=rgb24"


def _resized(_original: bool) -> str:
    area, ratio = random.uniform(*AREA), math.exp(random.uniform(*map(math.log, RATIO)))
    width, height = f"min(iw,sqrt(iw*ih*{area * ratio}))", f"min(ih,sqrt(iw*ih*{area / ratio}))"
    x, y = random.random(), random.random()
    part = f"crop=w='{width}':h='{height}':x='(iw-ow)*{x}':y='(ih-oh)*{y}'"
    return f"{part},scale={CROP}:{CROP}:flags=bilinear{_flip()},format=pix_fmts=rgb24"


def _flip() -> str:
    return ",hflip" if random.random() < 0.5 else ""


if __name__ == "__main__":
    main()
