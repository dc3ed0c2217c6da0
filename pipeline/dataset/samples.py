"""Read single samples of a dataset by their position in a split or by their key."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.index import ShardIndex, label_in, read_index
from pipeline.dataset.manifest import Shard
from pipeline.errors import UsageError
from pipeline.storage.base import ByteRange


@dataclass(frozen=True)
class StoredImage:
    """A sample as stored in its shard.

    Attributes:
        key: name of its members, without the suffix.
        label: class index.
        data: bytes of the image file; a JPEG, unless another tool wrote the tars.
    """

    key: str
    label: int
    data: bytes


def read_stored(dataset: Dataset, split: str, positions: Sequence[int]) -> list[StoredImage]:
    """Read samples by their positions in a split, as an in-order concatenation of its shards.

    A loader with an `EvalView` yields the samples of a split in this order.

    Args:
        dataset: an opened dataset.
        split: "train", "val" or "test".
        positions: positions in 0..samples-1, in any order; they may repeat.

    Returns:
        The samples, in the order of `positions`.

    Raises:
        UsageError: there is no such split or position, an index is damaged, or a shard cannot be read.
    """
    wanted: dict[Shard, list[tuple[int, int]]] = defaultdict(list)
    for number, position in enumerate(positions):
        shard, offset = _shard_of(dataset, split, position)
        wanted[shard].append((offset, number))
    found: dict[int, StoredImage] = {}
    for shard, offsets in wanted.items():
        index = read_index(dataset.store, shard)
        for offset, number in sorted(offsets):
            found[number] = _read(dataset, shard, index, offset)
    return [found[number] for number in range(len(positions))]


def _read(dataset: Dataset, shard: Shard, index: ShardIndex, sample: int) -> StoredImage:
    spans = [
        ByteRange(shard.name, index.image_offsets[sample], index.image_sizes[sample]),
        ByteRange(shard.name, index.label_offsets[sample], index.label_sizes[sample]),
    ]
    try:
        data, label = map(dataset.store.read, spans)
    except OSError as error:
        raise UsageError(
            f"{dataset.store.url_of(shard.name)}: unreadable ({error.strerror or error}); `alexnet-prep "
            f"verify {dataset.url}` checks the other files"
        ) from error
    return StoredImage(index.keys[sample], label_in(label), data)


def split_keys(dataset: Dataset, split: str) -> list[str]:
    """Read the keys of a split's samples from the indexes, in order. They are the keys in loaders' batches.

    Raises:
        UsageError: there is no such split, or an index is damaged.
    """
    return [key for shard in dataset.shards(split) for key in read_index(dataset.store, shard).keys]


def find_places(dataset: Dataset, split: str, keys: Sequence[str]) -> list[int]:
    """Find the positions of samples by their keys, for `read_stored`.

    Returns:
        The positions, in the order of `keys`.

    Raises:
        UsageError: there is no such split, or no sample has one of the keys.
    """
    stored = split_keys(dataset, split)
    positions = {key: position for position, key in enumerate(stored)}
    for key in keys:
        if key not in positions:
            example = next(iter(stored), "")
            raise UsageError(
                f"{dataset.url}: no image of {split} has the key {key!r}; its keys look like {example!r}"
            )
    return [positions[key] for key in keys]


def _shard_of(dataset: Dataset, split: str, position: int) -> tuple[Shard, int]:
    """Return the shard that holds the sample at a position, and its position in that shard."""
    if position >= 0:
        offset = position
        for shard in dataset.shards(split):
            if offset < shard.samples:
                return shard, offset
            offset -= shard.samples
    raise UsageError(
        f"{dataset.url}: asked for image {position} of {split}, which has {dataset.samples(split)} images "
        "(0 is the first)"
    )
