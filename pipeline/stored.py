"""Single pictures of a prepared dataset, read by their place or by their key."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.shards import index_path, label_in, read_index


@dataclass(frozen=True)
class StoredPicture:
    """A sample as it lies in its shard.

    Attributes:
        key: its name there, without the suffix.
        label: class number.
        data: the file's bytes, a JPEG unless the tars are another tool's.
    """

    key: str
    label: int
    data: bytes


def read_stored(dataset: Dataset, split: str, places: Sequence[int]) -> list[StoredPicture]:
    """Read samples by their places in a split: 0 is the first of its first shard.

    A loader with an `EvalView` yields a split in this order.

    Args:
        dataset: an opened dataset.
        split: "train", "val" or "test".
        places: in any order, as often as wanted.

    Returns:
        Pictures in the order of `places`.

    Raises:
        UsageError: no such split or place, or a damaged index.
    """
    wanted: dict[Path, list[tuple[int, int]]] = defaultdict(list)
    for number, place in enumerate(places):
        tar, offset = _shard_of(dataset, split, place)
        wanted[tar].append((offset, number))
    found: dict[int, StoredPicture] = {}
    for tar, offsets in wanted.items():
        index = read_index(index_path(tar))
        with tar.open("rb") as file:
            for offset, number in sorted(offsets):
                (at, size, name), (label_at, width, _) = index[offset]["jpg"], index[offset]["cls"]
                file.seek(at)
                data = file.read(size)
                file.seek(label_at)
                found[number] = StoredPicture(_key(name), label_in(file.read(width)), data)
    return [found[number] for number in range(len(places))]


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
                f"{dataset.root}: no picture of {split} has the key {key!r}; its keys are such as {example!r}"
            )
    return [places[key] for key in keys]


def _keys(dataset: Dataset, split: str) -> Iterator[str]:
    for index in dataset.indexes(split):
        for sample in read_index(index):
            yield _key(sample["jpg"][2])


def _key(name: str) -> str:
    return name.removesuffix(".jpg")


def _shard_of(dataset: Dataset, split: str, place: int) -> tuple[Path, int]:
    """The tar that a place lies in, and the place within it."""
    if place >= 0:
        offset = place
        for shard in dataset.shards(split):
            if offset < shard.samples:
                return dataset.root / shard.name, offset
            offset -= shard.samples
    raise UsageError(
        f"{dataset.root}: picture {place} of {split} was asked for, but it holds {dataset.samples(split)}"
    )
