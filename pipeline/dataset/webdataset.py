"""A split as a pipeline of the webdataset library.

    shards, shuffled ─► those of this process and worker ─► samples ─► shuffled in a buffer ─► decoded

The samples are read through the dataset's own indexes and store. Of webdataset's openers, which run commands
for names such as `pipe:…`, none is reached.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import webdataset

from pipeline.dataset.samples import Samples, StoredSample
from pipeline.errors import UsageError
from pipeline.images.codec import Pixels
from pipeline.seeds import Purpose, derive_seed, random_generator
from pipeline.text import number_of


def pipeline_of(
    samples: Samples[Pixels], shuffle: int, seed: int, epoch: int, *, decode: bool
) -> "webdataset.FluidWrapper":
    """Make the pipeline; `Dataset.webdataset` describes it and its arguments."""
    order: list[int] = list(range(len(samples.shards)))
    if shuffle:
        order = random_generator(seed, Purpose.SHARDS, epoch).permutation(len(order)).tolist()
    stages = [
        partial(_for_all_processes, samples),
        webdataset.split_by_node,
        webdataset.split_by_worker,
        partial(_stored, samples),
    ]
    if shuffle:
        stages.append(
            webdataset.shuffle(shuffle, initial=shuffle, seed=derive_seed(seed, "webdataset", epoch))
        )
    stages.append(partial(_decoded if decode else _as_bytes, samples))
    return webdataset.FluidWrapper(order).compose(*stages)


def _for_all_processes(samples: Samples[Pixels], numbers: Iterable[int]) -> Iterator[int]:
    """Pass the shards on if there is one for each process: one without any would wait for the others."""
    _, processes, _, _ = webdataset.utils.pytorch_worker_info()
    if len(samples.shards) < processes:
        raise UsageError(
            f"{samples.split} has {number_of(len(samples.shards), 'shard')}, fewer than {processes} "
            "processes; prepare it with smaller shards (--shard-samples), or use pipeline.open_loader, which "
            "divides batches"
        )
    yield from numbers


def _stored(samples: Samples[Pixels], numbers: Iterable[int]) -> Iterator[StoredSample]:
    for number in numbers:
        yield from samples.stored_in(number)


def _decoded(samples: Samples[Pixels], stored: Iterable[StoredSample]) -> Iterator[tuple[Pixels, int]]:
    for one in stored:
        image, label, _ = samples.decoded(one)
        yield image, label


def _as_bytes(samples: Samples[Pixels], stored: Iterable[StoredSample]) -> Iterator[dict[str, Any]]:
    for one in stored:
        yield {
            "__key__": one.key,
            "__url__": samples.store.url_of(one.span.path),
            "jpg": one.data,
            "cls": one.digits,
        }
