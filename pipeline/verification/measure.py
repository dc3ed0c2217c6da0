"""Measure a dataset's pixel statistics again, on the decoded images of its shards."""

from functools import partial

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.index import read_index
from pipeline.dataset.manifest import ImageFormat, Shard
from pipeline.errors import RunError
from pipeline.executors.base import Executor
from pipeline.executors.local import count_image
from pipeline.images.codec import DecodeError, decode, resize_shorter
from pipeline.images.statistics import Moments, Statistics, statistics_of
from pipeline.progress import OnProgress, no_progress
from pipeline.storage.base import Store
from pipeline.storage.open import open_store
from pipeline.verification.tasks import ONE_BY_ONE, run_tasks

LARGEST = 65535**2 / 1e6
"""Megapixels of the largest image that the JPEG format allows: preparation has applied its limit already."""


def decoded_statistics(
    dataset: Dataset, executor: Executor = ONE_BY_ONE, on_progress: OnProgress = no_progress
) -> Statistics:
    """Decode every training image of a dataset, strictly, and measure the pixel statistics.

    They differ from the manifest's statistics by the changes that JPEG encoding made to the pixels, unless
    the manifest's are of decoded images too. Images of their original size are scaled first, as on loading.

    Args:
        dataset: An opened dataset.
        executor: Executor of the tasks, one for each tar; the result is bit-identical on all of them.
        on_progress: Called with (images done, images in all).

    Raises:
        UsageError: The dataset has no training images, or an index is damaged.
        RunError: An image does not decode, or a worker died.
    """
    shards = dataset.shards("train")
    # With an absolute path, because workers may have another current folder.
    work = partial(_measure, store=open_store(dataset.root.absolute()), image=dataset.image)
    moments = Moments()
    for measured in run_tasks(executor, work, shards, [shard.samples for shard in shards], on_progress):
        moments.merge(measured)
    return statistics_of(moments, "decoded")


def _measure(shard: Shard, store: Store, image: ImageFormat) -> Moments:
    """Return the moments of a shard's images; runs in a worker."""
    moments = Moments()
    with store.open(shard.name) as file:
        index = read_index(store, shard)
        for key, offset, size in zip(index.keys, index.image_offsets, index.image_sizes, strict=True):
            file.seek(offset)
            try:
                pixels = decode(file.read(size), LARGEST).pixels
                if image.mode == "original":
                    pixels = resize_shorter(pixels, image.size)
            except DecodeError as error:
                raise RunError(
                    f"{store.url_of(shard.name)}: {key} does not decode ({error}); "
                    f"`alexnet-prep verify {store}` names all such images"
                ) from error
            moments.add(pixels)
            count_image()
    return moments
