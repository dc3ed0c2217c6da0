"""Measure a dataset's pixel statistics again, on the decoded images of its shards."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.index import index_path, read_index
from pipeline.dataset.manifest import ImageFormat
from pipeline.errors import RunError
from pipeline.executors.base import Executor
from pipeline.executors.local import LocalExecutor, count_image
from pipeline.images.codec import DecodeError, decode, resize_shorter
from pipeline.images.statistics import Moments, Statistics, statistics_of

Progress = Callable[[int, int], None]
"""Called with (images handled, images in all)."""

_ONE_BY_ONE: Executor = LocalExecutor()
# Megapixels of the largest image that the JPEG format allows: preparation has applied its limit already.
_LARGEST = 65535**2 / 1e6


class _Tar(NamedTuple):
    """A training tar of a dataset, with the folder of the dataset and its image format; each is a task."""

    root: Path
    name: str
    image: ImageFormat


def decoded_statistics(
    dataset: Dataset, executor: Executor = _ONE_BY_ONE, progress: Progress | None = None
) -> Statistics:
    """Decode every training image of a dataset, strictly, and measure the pixel statistics.

    They differ from the manifest's statistics by the changes that JPEG encoding made to the pixels, unless
    the manifest's are of decoded images too. Images of their original size are scaled first, as on loading.

    Args:
        dataset: An opened dataset.
        executor: Executor of the tasks, one for each tar; the result is bit-identical on all of them.
        progress: Called with (images done, images in all).

    Raises:
        UsageError: The dataset has no training images, or an index is damaged.
        RunError: An image does not decode, or a worker died.
    """
    tars = [_Tar(dataset.root.absolute(), shard.name, dataset.image) for shard in dataset.shards("train")]
    total = dataset.samples("train")

    def on_progress(done: int) -> None:
        if progress:
            progress(min(done, total), total)

    moments = Moments()
    for measured in executor.run(_measure, tars, on_progress):
        moments.merge(measured)
    on_progress(total)
    return statistics_of(moments, "decoded")


def _measure(tar: _Tar) -> Moments:
    """Return the moments of a tar's images; runs in a worker."""
    path = tar.root / tar.name
    moments = Moments()
    with path.open("rb") as file:
        for sample in read_index(index_path(path)):
            offset, size, name = sample["jpg"]
            file.seek(offset)
            try:
                pixels = decode(file.read(size), _LARGEST).pixels
                if tar.image.mode == "original":
                    pixels = resize_shorter(pixels, tar.image.size)
            except DecodeError as error:
                raise RunError(
                    f"{path}: {name} does not decode ({error}); `alexnet-prep verify {tar.root}` names all "
                    "such images"
                ) from error
            moments.add(pixels)
            count_image()
    return moments
