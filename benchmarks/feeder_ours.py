"""Feeder for our loader, run by benchmarks/loader.py: the whole loader, or the first operators of its graph.

--kind "bytes" stops before normalization, like the peers whose batches are uint8; --kind "decoding" runs the
CPU operators of placement "hybrid".
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import nvidia.dali.fn as fn
from feeder import CROP, Order, read_order, serve
from nvidia.dali import pipeline_def

from pipeline import Dataset, Loader, Placement, TrainView, color_noise
from pipeline.dataset.manifest import ImageFormat
from pipeline.loader.dali import graph
from pipeline.loader.order import SEGMENT


def main() -> None:
    order = read_order(__doc__)
    serve(whole(order) if order.kind == "" else part(order))


def long(dataset: Dataset) -> Dataset:
    """Repeat the dataset's tars until an epoch has at least SEGMENT samples, a full segment."""
    shards = dataset.shards("train")
    times = -(-SEGMENT // dataset.samples("train"))
    return Dataset(dataset.url, replace(dataset.manifest, splits={"train": shards * times}))


def view_of(dataset: Dataset, order: Order) -> TrainView:
    """Return the paper's augmentation with mean subtraction, or random-resized crops with mean and std."""
    mean = dataset.statistics.mean
    if order.augmentation == "paper":
        return TrainView(CROP, mean, noise=color_noise("paper", dataset.statistics))
    covariance = dataset.statistics.covariance
    std = tuple(covariance[c][c] ** 0.5 for c in range(3))
    return TrainView(CROP, mean, std, augmentation="random-resized-crop")


def whole(order: Order) -> Iterator[int]:
    """Yield the size of each float32 batch of the loader, with everything on the CPU."""
    dataset = long(Dataset.open(order.data))
    place = Placement(threads=order.threads)
    loader = Loader(dataset, "train", view_of(dataset, order), order.batch, placement=place)
    while True:
        for batch in loader:
            yield len(batch.labels)


def part(order: Order) -> Iterator[int]:
    """Yield the size of each uint8 batch of a part of the graph: flipped crops, or hybrid's CPU part."""
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
    """Return the CPU operators of "hybrid"; the GPU then crops or scales, flips and normalizes."""
    if augmentation == "random-resized-crop":
        return fn.decoders.image_random_crop(
            jpeg,
            adjust_orientation=False,
            random_area=graph.RESIZED_AREA,
            random_aspect_ratio=graph.RESIZED_RATIO,
            num_attempts=graph.RESIZED_TRIES,
        )
    if stored.mode == "original":  # the GPU scales the whole image
        return fn.decoders.image(jpeg, adjust_orientation=False)
    return graph._random_crop(jpeg, CROP, stored, place)


if __name__ == "__main__":
    main()
