"""Ours, for benchmarks/loader.py: the whole loader, or parts of its graph.

--kind "bytes" ends before normalization, as the peers do that give bytes; "decoding" is what placement
"hybrid" leaves to the CPU.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import nvidia.dali.fn as fn
from loader_options import CROP, Order, read_order, serve
from nvidia.dali import pipeline_def

from pipeline import Dataset, Loader, Placement, TrainView, color_noise
from pipeline.dataset.manifest import ImageFormat
from pipeline.loader.dali import graph
from pipeline.loader.order import SEGMENT


def main() -> None:
    order = read_order(__doc__)
    serve(whole(order) if order.kind == "" else part(order))


def long(dataset: Dataset) -> Dataset:
    """The same tars often enough that an epoch is as long as a segment of ImageNet's is."""
    shards = dataset.shards("train")
    times = -(-SEGMENT // dataset.samples("train"))
    return Dataset(dataset.url, replace(dataset.manifest, splits={"train": shards * times}))


def view_of(dataset: Dataset, order: Order) -> TrainView:
    """The paper's crop, flip, noise and mean; or random-resized crop, flip, mean and deviation."""
    mean = dataset.statistics.mean
    if order.augmentation == "paper":
        return TrainView(CROP, mean, noise=color_noise("paper", dataset.statistics))
    std = dataset.statistics
    deviations = tuple(std.covariance[c][c] ** 0.5 for c in range(3))
    return TrainView(CROP, mean, deviations, augmentation="random-resized-crop")


def whole(order: Order) -> Iterator[int]:
    """Float32 batches of the loader, all on the CPU."""
    dataset = long(Dataset.open(order.data))
    place = Placement(threads=order.threads)
    loader = Loader(dataset, "train", view_of(dataset, order), order.batch, placement=place)
    while True:
        for batch in loader:
            yield len(batch.labels)


def part(order: Order) -> Iterator[int]:
    """Bytes and labels' digits: of crops mirrored or not, or of what "hybrid" brings to the GPU."""
    dataset = Dataset.open(order.data)
    reader = graph.ReaderSettings(
        tars=list(map(str, dataset.tars("train"))),
        indexes=list(map(str, dataset.indexes("train"))),
        label_width=dataset.manifest.label_width,
        buffer=2048,
    )
    place, stored = Placement(threads=order.threads), dataset.image

    @pipeline_def(exec_dynamic=True)  # type: ignore[untyped-decorator]
    def pipe() -> Any:
        jpeg, digits = graph._read(reader)
        make = _crops if order.kind == "bytes" else _decoded
        return make(jpeg, order.augmentation, stored, place), digits

    built = pipe(batch_size=order.batch, num_threads=order.threads, device_id=None)
    while True:
        yield len(built.run()[0])


def _crops(jpeg: Any, augmentation: str, stored: ImageFormat, place: Placement) -> Any:
    if augmentation == "paper":
        image = graph._random_crop(jpeg, CROP, stored, place)
    else:
        image = graph._random_resized(jpeg, CROP, place)
    return fn.flip(image, horizontal=fn.random.coin_flip())


def _decoded(jpeg: Any, augmentation: str, stored: ImageFormat, place: Placement) -> Any:
    """What the GPU crops or scales, mirrors and normalizes."""
    if augmentation == "random-resized-crop":
        return fn.decoders.image_random_crop(
            jpeg,
            adjust_orientation=False,
            random_area=graph.RESIZED_AREA,
            random_aspect_ratio=graph.RESIZED_RATIO,
            num_attempts=graph.RESIZED_TRIES,
        )
    if stored.mode == "original":  # whole, as it is scaled there
        return fn.decoders.image(jpeg, adjust_orientation=False)
    return graph._random_crop(jpeg, CROP, stored, place)


if __name__ == "__main__":
    main()
