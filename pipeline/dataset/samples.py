"""Single images of a prepared dataset, read by their place or by their key."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.index import index_name, keys_in, label_in, read_index
from pipeline.errors import UsageError
from pipeline.storage.base import ByteRange


@dataclass(frozen=True)
class StoredImage:
    """A sample as it lies in its shard.

    Attributes:
        key: its name there, without the suffix.
        label: class number.
        data: the file's bytes, a JPEG unless the tars are another tool's.
    """

    key: str
    label: int
    data: bytes


def read_stored(dataset: Dataset, split: str, places: Sequence[int]) -> list[StoredImage]:
    """Read samples by their places in a split: 0 is the first of its first shard.

    A loader with an `EvalView` yields a split in this order.

    Args:
        dataset: an opened dataset.
        split: "train", "val" or "test".
        places: in any order, as often as wanted.

    Returns:
        Images in the order of `places`.

    Raises:
        UsageError: no such split or place, a damaged index, or a shard that cannot be read.
    """
    wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, place in enumerate(places):
        tar, offset = _shard_of(dataset, split, place)
        wanted[tar].append((offset, number))
    found: dict[int, StoredImage] = {}
    for tar, offsets in wanted.items():
        with dataset.store.as_local_path(index_name(tar)) as path:
            index = read_index(path)
        for offset, number in sorted(offsets):
            found[number] = _read(dataset, tar, index[offset])
    return [found[number] for number in range(len(places))]


def _read(dataset: Dataset, tar: str, sample: dict[str, tuple[int, int, str]]) -> StoredImage:
    (at, size, name), (label_at, width, _) = sample["jpg"], sample["cls"]
    try:
        data = dataset.store.read(ByteRange(tar, at, size))
        label = label_in(dataset.store.read(ByteRange(tar, label_at, width)))
    except OSError as error:
        raise UsageError(
            f"{dataset.store.url_of(tar)}: unreadable ({error.strerror or error}); `alexnet-prep verify "
            f"{dataset.url}` checks the rest"
        ) from error
    return StoredImage(name.removesuffix(".jpg"), label, data)


def find_places(dataset: Dataset, split: str, keys: Sequence[str]) -> list[int]:
    """Find the places of samples by their keys, for `read_stored`.

    Raises:
        UsageError: no such split, or or a key that no sample has.
    """
    wanted = set(keys)
    places = {key: place for place, key in enumerate(_keys(dataset, split)) if key in wanted}
    for key in keys:
        if key not in places:
            example = next(_keys(dataset, split), "")
            raise UsageError(
                f"{dataset.url}: no image of {split} has the key {key!r}; its keys are such as {example!r}"
            )
    return [places[key] for key in keys]


def _keys(dataset: Dataset, split: str) -> Iterator[str]:
    for shard in dataset.shards(split):
        yield from keys_in(dataset.store, shard)


def _shard_of(dataset: Dataset, split: str, place: int) -> tuple[str, int]:
    """The tar that a place lies in, and the place within it."""
    if place >= 0:
        offset = place
        for shard in dataset.shards(split):
            if offset < shard.samples:
                return shard.name, offset
            offset -= shard.samples
    raise UsageError(
        f"{dataset.url}: image {place} of {split} was asked for, but it holds {dataset.samples(split)}"
    )
