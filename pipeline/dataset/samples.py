"""Read single samples of a dataset by their position in a split or by their key."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.index import index_name, keys_in, label_in, read_index
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
    wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, position in enumerate(positions):
        tar, offset = _shard_of(dataset, split, position)
        wanted[tar].append((offset, number))
    found: dict[int, StoredImage] = {}
    for tar, offsets in wanted.items():
        with dataset.store.as_local_path(index_name(tar)) as path:
            index = read_index(path)
        for offset, number in sorted(offsets):
            found[number] = _read(dataset, tar, index[offset])
    return [found[number] for number in range(len(positions))]


def _read(dataset: Dataset, tar: str, sample: dict[str, tuple[int, int, str]]) -> StoredImage:
    (at, size, name), (label_at, width, _) = sample["jpg"], sample["cls"]
    try:
        data = dataset.store.read(ByteRange(tar, at, size))
        label = label_in(dataset.store.read(ByteRange(tar, label_at, width)))
    except OSError as error:
        raise UsageError(
            f"{dataset.store.url_of(tar)}: unreadable ({error.strerror or error}); `alexnet-prep verify "
            f"{dataset.url}` checks the other files"
        ) from error
    return StoredImage(name.removesuffix(".jpg"), label, data)


def find_places(dataset: Dataset, split: str, keys: Sequence[str]) -> list[int]:
    """Find the positions of samples by their keys, for `read_stored`.

    Returns:
        The positions, in the order of `keys`.

    Raises:
        UsageError: there is no such split, or no sample has one of the keys.
    """
    wanted = set(keys)
    positions = {key: position for position, key in enumerate(_keys(dataset, split)) if key in wanted}
    for key in keys:
        if key not in positions:
            example = next(_keys(dataset, split), "")
            raise UsageError(
                f"{dataset.url}: no image of {split} has the key {key!r}; its keys look like {example!r}"
            )
    return [positions[key] for key in keys]


def _keys(dataset: Dataset, split: str) -> Iterator[str]:
    for shard in dataset.shards(split):
        yield from keys_in(dataset.store, shard)


def _shard_of(dataset: Dataset, split: str, position: int) -> tuple[str, int]:
    """Return the tar that holds the sample at a position, and its position in that tar."""
    if position >= 0:
        offset = position
        for shard in dataset.shards(split):
            if offset < shard.samples:
                return shard.name, offset
            offset -= shard.samples
    raise UsageError(
        f"{dataset.url}: asked for image {position} of {split}, which has {dataset.samples(split)} images "
        "(0 is the first)"
    )
