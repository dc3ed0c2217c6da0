"""The samples of a split by their position or key: decoded, as a map-style dataset, or as they are stored."""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.index import index_name, label_digits, read_index
from pipeline.dataset.manifest import Manifest, Shard
from pipeline.errors import RunError, UsageError
from pipeline.images.codec import DecodeError, Pixels, decode
from pipeline.storage.base import ByteRange, Store

Image = TypeVar("Image")
# Samples at each end of a split whose labels show whether it is sorted.
_WINDOW = 64


class Sample(NamedTuple, Generic[Image]):
    """A decoded sample.

    Attributes:
        image: uint8 (H, W, 3), RGB, of the size that is stored; or what a transform made of it.
        label: Class index.
        key: Name of its members in the tar, without the suffix.
    """

    image: Image
    label: int
    key: str


@dataclass(frozen=True)
class StoredSample:
    """A sample as stored in its shard.

    Attributes:
        key: Name of its members in the tar, without the suffix.
        digits: Its label in ASCII digits.
        data: Bytes of the image file; a JPEG, unless another tool wrote the tars.
        span: Where these bytes lie: the tar's name in the dataset, offset and size.
    """

    key: str
    digits: bytes
    data: bytes
    span: ByteRange

    @property
    def label(self) -> int:
        """Class index."""
        return int(self.digits)


class Samples(Generic[Image]):
    """A split as a map-style dataset: `samples[i]` is a `Sample`, and `len(samples)` reads no file.

    The order is that of the shards, as in a loader with an `EvalView`. Forked and spawned processes, such as
    the workers of torch's DataLoader, can use it too, since no file stays open. An index is read when a
    sample of its shard is first asked for, and then kept in arrays: 75 MB for all of ImageNet's 1.28 million
    samples.

    Attributes:
        split: Name of the split.
        shards: Its shards.
        store: The store that holds them.

    Examples:
        >>> samples = Dataset.open("imagenet").samples("val")
        >>> len(samples), samples[-1].image.shape
        (50000, (256, 256, 3))
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        split: str,
        transform: Callable[[Pixels], Image] | None = None,
    ) -> None:
        """Note what is read; `Dataset.samples` makes it.

        Args:
            store: The store that holds the dataset.
            manifest: Its manifest.
            split: A split that the manifest names.
            transform: Called with each image, uint8 (H, W, 3); returns what stands in its place.
        """
        self.split, self.shards, self.store = split, manifest.splits[split], store
        self._transform = transform
        self._adopted, self._classes = manifest.adopted, len(manifest.classes)
        self._ends = np.cumsum([shard.samples for shard in self.shards], dtype=np.int64)
        self._indexes: dict[int, _CompactIndex] = {}

    def __len__(self) -> int:
        """Number of samples, by the manifest."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, position: int) -> Sample[Image]:
        """Return the sample at a position; negative ones count from the end.

        Raises:
            IndexError: There is no such position.
            UsageError: An index is damaged, or a shard cannot be read.
            RunError: The sample is damaged; the message names it.
        """
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Sample[Image]]:
        """Return several samples. torch's DataLoader calls this; from a bucket they are read at once."""
        count = len(self)
        wanted = [operator.index(position) for position in positions]
        for position in wanted:
            if not -count <= position < count:
                raise IndexError(f"position {position} of {self.split}, which has {count} samples")
        return [self.decoded(one) for one in self.stored([position % count for position in wanted])]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the indexes to the process that unpickles it."""
        return self.__dict__ | {"_indexes": {}}

    def decoded(self, stored: StoredSample) -> Sample[Image]:
        """Decode a sample and apply the transform.

        Raises:
            RunError: The image does not decode, or its label is not a class.
        """
        try:
            pixels = decode(stored.data, math.inf).pixels
        except DecodeError as error:
            raise self._damaged(stored.key, stored.span, error) from error
        if stored.label >= self._classes:
            problem = f"its label is {stored.label}, but the manifest names {self._classes} classes"
            raise self._damaged(stored.key, stored.span, problem)
        if self._transform is None:
            return Sample(cast(Image, pixels), stored.label, stored.key)
        try:
            return Sample(self._transform(pixels), stored.label, stored.key)
        except Exception as error:
            error.add_note(f"the transform failed for the sample {stored.key} of {self.split}")
            raise

    def stored(self, positions: Sequence[int]) -> list[StoredSample]:
        """Read samples as they are stored.

        Args:
            positions: Positions in 0..samples-1, in any order; they may repeat.

        Returns:
            The samples, in the order of `positions`.

        Raises:
            UsageError: There is no such position, an index is damaged, or a shard cannot be read.
            RunError: A label is not a number.
        """
        for position in positions:
            if not 0 <= position < len(self):
                raise UsageError(
                    f"{self.store}: asked for image {position} of {self.split}, which has {len(self)} images "
                    "(0 is the first)"
                )
        keys: list[str] = []
        spans: list[ByteRange] = []
        for number, sample in self._places(positions):
            keys.append(self._index(number).key(sample))
            spans += self._spans(number, sample)
        read = self.store.read_many(spans)
        return [
            self._sample(key, span, next(read), next(read))
            for key, span in zip(keys, spans[::2], strict=True)
        ]

    def stored_in(self, number: int) -> Iterator[StoredSample]:
        """Read the samples of one shard as they are stored, from front to back: a bucket sends large blocks.

        Args:
            number: Number of the shard in the split.

        Raises:
            UsageError: The index is damaged, or the shard cannot be read.
            RunError: A label is not a number.
        """
        shard, index = self.shards[number], self._index(number)
        try:
            with self.store.open(shard.name) as file:
                for sample in range(shard.samples):
                    image, label = spans = self._spans(number, sample)
                    found: dict[ByteRange, bytes] = {}
                    for span in sorted(spans, key=lambda span: span.offset):
                        file.seek(span.offset)
                        found[span] = file.read(span.size or 0)
                    yield self._sample(index.key(sample), image, found[image], found[label])
        except OSError as error:
            raise self._unreadable(shard.name, error) from error

    def are_sorted(self) -> bool:
        """Whether samples beside each other mostly have the same class; only 128 labels are read.

        Among the first 64 samples and among the last 64, fewer than half as many neighbors differ as in a
        random order of these. Never so for fewer than 64 samples.

        Raises:
            UsageError: An index is damaged, or a shard cannot be read.
            RunError: A label is not a number.
        """
        count = len(self)
        if count < _WINDOW:
            return False
        size = min(_WINDOW, count // 2)
        places = [*self._places([*range(size), *range(count - size, count)])]
        spans = [self._spans(*place)[1] for place in places]
        labels = np.array(
            [
                self._sample(self._index(number).key(sample), span, b"", label).label
                for (number, sample), span, label in zip(
                    places, spans, self.store.read_many(spans), strict=True
                )
            ]
        ).reshape(2, size)
        shares = np.unique(labels, return_counts=True)[1] / labels.size
        return bool(2 * np.count_nonzero(np.diff(labels)) < (1 - (shares**2).sum()) * 2 * (size - 1))

    def keys(self) -> list[str]:
        """Read the keys of all samples from the indexes, in order. They are the keys in loaders' batches.

        Raises:
            UsageError: An index is damaged.
        """
        return [
            self._index(number).key(sample)
            for number, shard in enumerate(self.shards)
            for sample in range(shard.samples)
        ]

    def positions(self, keys: Sequence[str]) -> list[int]:
        """Find samples by their keys.

        Returns:
            Their positions, in the order of `keys`.

        Raises:
            UsageError: No sample has one of the keys, or an index is damaged.
        """
        stored = self.keys()
        found = {key: position for position, key in enumerate(stored)}
        for key in keys:
            if key not in found:
                example = next(iter(stored), "")
                raise UsageError(
                    f"{self.store}: no image of {self.split} has the key {key!r}; its keys look like "
                    f"{example!r}"
                )
        return [found[key] for key in keys]

    def _places(self, positions: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield the number of each position's shard, and that of the sample in it."""
        numbers = np.searchsorted(self._ends, np.asarray(positions, np.int64), side="right").tolist()
        for number, position in zip(numbers, positions, strict=True):
            yield number, position - int(self._ends[number]) + self.shards[number].samples

    def _index(self, number: int) -> "_CompactIndex":
        if number not in self._indexes:
            self._indexes[number] = _CompactIndex.read(self.store, self.shards[number])
        return self._indexes[number]

    def _spans(self, number: int, sample: int) -> tuple[ByteRange, ByteRange]:
        """Return where a shard's sample has its image and its label."""
        name, (image, image_size, label, label_size) = (
            self.shards[number].name,
            self._index(number).places[sample].tolist(),
        )
        return ByteRange(name, image, image_size), ByteRange(name, label, label_size)

    def _sample(
        self, key: str, span: ByteRange, data: bytes | OSError, label: bytes | OSError
    ) -> StoredSample:
        for part in (data, label):
            if isinstance(part, OSError):
                raise self._unreadable(span.path, part) from part
        assert isinstance(data, bytes)
        assert isinstance(label, bytes)
        try:
            return StoredSample(key, label_digits(label, adopted=self._adopted), data, span)
        except ValueError as error:
            raise self._damaged(key, span, error) from error

    def _unreadable(self, name: str, error: OSError) -> UsageError:
        return UsageError(
            f"{self.store.url_of(name)}: unreadable ({error.strerror or error}); `alexnet-prep verify "
            f"{self.store}` checks the other files"
        )

    def _damaged(self, key: str, span: ByteRange, problem: object) -> RunError:
        return RunError(
            f"{self.store.url_of(span.path)}: the sample {key} (bytes {span.offset:,} to "
            f"{span.offset + (span.size or 0):,}) is damaged: {problem}; `alexnet-prep verify {self.store}` "
            "lists everything that changed since it was written"
        )


class _CompactIndex(NamedTuple):
    """A shard's index in arrays.

    Lists of its numbers and keys take three times the memory, and more in forked processes, where counting
    references copies their pages.

    Attributes:
        places: int64 (N, 4), offset and size of each image, then of each label.
        names: All keys, one after the other.
        ends: int64 (N,), where each key ends in `names`.
    """

    places: NDArray[np.int64]
    names: bytes
    ends: NDArray[np.int64]

    @classmethod
    def read(cls, store: Store, shard: Shard) -> "_CompactIndex":
        """Read the index of a shard; raises UsageError where it is damaged."""
        index = read_index(store, shard)
        names = [key.encode() for key in index.keys]
        columns = (index.image_offsets, index.image_sizes, index.label_offsets, index.label_sizes)
        try:
            places = np.array(columns, np.int64).T.copy()
        except OverflowError as error:
            raise UsageError(
                f"{store.url_of(index_name(shard.name))}: damaged ({error}); prepare the dataset again"
            ) from error
        return cls(places, b"".join(names), np.cumsum([len(name) for name in names], dtype=np.int64))

    def key(self, sample: int) -> str:
        """Return the key of a sample."""
        return self.names[self.ends[sample - 1] if sample else 0 : self.ends[sample]].decode()
