"""Ours, for benchmarks/loader.py: the whole loader, or the CPU's share of placement "hybrid"."""

from collections.abc import Iterator
from typing import Any

import nvidia.dali.fn as fn
from feeding import CROP, Order, read_order, serve
from nvidia.dali import pipeline_def

from pipeline import Dataset, Loader, Placement, TrainView, colour_noise, graph


def main() -> None:
    order = read_order(__doc__)
    serve(whole(order) if order.kind == "" else decoding(order))


def view_of(dataset: Dataset, order: Order) -> TrainView:
    """The paper's crop, flip, noise and mean; or random-resized crop, flip, mean and deviation."""
    mean = dataset.statistics.mean
    if order.augmentation == "paper":
        return TrainView(CROP, mean, noise=colour_noise("paper", dataset.statistics))
    std = dataset.statistics
    deviations = tuple(std.covariance[c][c] ** 0.5 for c in range(3))
    return TrainView(CROP, mean, deviations, augmentation="random-resized-crop")


def whole(order: Order) -> Iterator[int]:
    """Float32 batches of the loader, all on the CPU."""
    dataset = Dataset.open(order.data)
    place = Placement(threads=order.threads)
    loader = Loader(dataset, "train", view_of(dataset, order), order.batch, placement=place)
    while True:
        for batch in loader:
            yield len(batch.labels)


def decoding(order: Order) -> Iterator[int]:
    """What "hybrid" leaves to the CPU: bytes of the crop, or of what is scaled to it on the GPU."""
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
        jpeg, _ = graph._read(reader)
        if order.augmentation == "random-resized-crop":
            return fn.decoders.image_random_crop(
                jpeg,
                adjust_orientation=False,
                random_area=graph.RESIZED_AREA,
                random_aspect_ratio=graph.RESIZED_RATIO,
                num_attempts=graph.RESIZED_TRIES,
            )
        if stored.mode == "original":  # all of it: the GPU scales
            return fn.decoders.image(jpeg, adjust_orientation=False)
        return graph._random_crop(jpeg, CROP, stored, place)

    built = pipe(batch_size=order.batch, num_threads=order.threads, device_id=None)
    while True:
        yield len(built.run()[0])


if __name__ == "__main__":
    main()
