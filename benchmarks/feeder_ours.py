"""Feeder for our loader, run by benchmarks/loader.py: the whole loader, with one of its backends.

--kind "dali" takes that backend instead of threads.
"""

from collections.abc import Iterator
from dataclasses import replace

from feeder import CROP, Order, read_order, serve

from pipeline import Dataset, Loader, Placement, TrainView, color_noise

# Samples of an epoch, at least, so that the measurement sees few ends of epochs.
_EPOCH = 65_536


def main() -> None:
    serve(batches(read_order(__doc__)))


def long(dataset: Dataset) -> Dataset:
    """Repeat the dataset's tars until an epoch has many samples."""
    shards = dataset.shards("train")
    times = -(-_EPOCH // len(dataset.samples("train")))
    return Dataset(dataset.url, replace(dataset.manifest, splits={"train": shards * times}))


def view_of(dataset: Dataset, order: Order) -> TrainView:
    """Return the paper's augmentation with mean subtraction, or random-resized crops with mean and std."""
    mean = dataset.statistics.mean
    if order.augmentation == "paper":
        return TrainView(CROP, mean, noise=color_noise("paper", dataset.statistics))
    covariance = dataset.statistics.covariance
    std = tuple(covariance[c][c] ** 0.5 for c in range(3))
    return TrainView(CROP, mean, std, augmentation="random-resized-crop")


def batches(order: Order) -> Iterator[int]:
    """Yield the size of each float32 batch of the loader, in the memory format of convolutions on CPUs."""
    dataset = long(Dataset.open(order.data))
    loader = Loader(
        dataset,
        "train",
        view_of(dataset, order),
        order.batch,
        backend="dali" if order.kind == "dali" else "threads",
        placement=Placement(threads=order.threads),
        channels_last=True,
    )
    while True:
        for batch in loader:
            yield len(batch.labels)


if __name__ == "__main__":
    main()
