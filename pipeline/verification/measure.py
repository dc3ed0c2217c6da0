"""Statistics measured again on the images as the shards hold them."""

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
# The largest image that a JPEG can hold, in megapixels: what a dataset holds was let in before.
_LARGEST = 65535**2 / 1e6


class _Tar(NamedTuple):
    """A task: a training tar of a dataset in `root`, and how its images are stored."""

    root: Path
    name: str
    image: ImageFormat


def decoded_statistics(
    dataset: Dataset, engine: Executor = _ONE_BY_ONE, progress: Progress | None = None
) -> Statistics:
    """Decode every training image of a dataset, strictly, and measure its pixels.

    They differ from the manifest's statistics by what JPEG encoding did to the pixels, unless these are of
    decoded images too. Images of their original size are scaled first, as on loading.

    Args:
        dataset: an opened dataset.
        engine: where tars are measured, each a task; any gives the same bits.
        progress: told how far the work is.

    Raises:
        UsageError: the dataset has no training images, or a damaged index.
        RunError: an image that does not decode, or a worker that died.
    """
    tars = [_Tar(dataset.root.absolute(), shard.name, dataset.image) for shard in dataset.shards("train")]
    total = dataset.samples("train")

    def on_progress(done: int) -> None:
        if progress:
            progress(min(done, total), total)

    moments = Moments()
    for part in engine.run(_measure, tars, on_progress):
        moments.merge(part)
    on_progress(total)
    return statistics_of(moments, "decoded")


def _measure(tar: _Tar) -> Moments:
    """In a worker: the moments of a tar's images."""
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
