"""The shards that a process is reading: opened in the order of their use, some ahead, and given up after it.

A shard is mapped into memory, read in place, or taken from a local cache; of a bucket without a cache it is
fetched whole into memory.
"""

import mmap
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.arguments import COUNT, check_record
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.index import ShardIndex, label_digits, read_index
from pipeline.dataset.manifest import Manifest, Shard
from pipeline.errors import RunError, UsageError
from pipeline.host import refuse_too_many_open_files
from pipeline.images.codec import DecodeError
from pipeline.loader.order import Use
from pipeline.loader.shard_cache import Cache
from pipeline.storage.base import ByteRange
from pipeline.text import number_of

AHEAD = 2
"""Shards that are opened before their first batch is planned."""
_STREAMS = 4


@dataclass(frozen=True)
class ReadOptions:
    """How shards are read.

    Attributes:
        mmap: Map tars into memory. Turn it off for network file systems, where a mapped page that cannot
            be read kills the process.
        cache: Folder on a local disk. Shards are copied to a folder in it, `alexnet-shards`, before they are
            read, in the order of the epoch. None reads them from the dataset's folder or bucket.
        cache_limit: Most bytes that `alexnet-shards` may hold, None for no limit.

    Raises:
        UsageError: `cache_limit` is not at least 1.
    """

    mmap: bool = True
    cache: Path | None = None
    cache_limit: int | None = None

    def __post_init__(self) -> None:
        check_record(self, cache_limit=COUNT)


Read = Callable[[int, int], memoryview | bytes]


DAMAGE = (DecodeError, OSError, ValueError)
"""What reading and decoding a sample raises where it is damaged."""


class SampleError(Exception):
    """A sample that cannot be read or decoded.

    Attributes:
        path: Path or URL from which its shard is read; in the cache, the copy's path.
        shard: Name of the shard below the dataset's root.
        key: The sample's key.
        begin, end: First byte of its image in the tar, and the one after the last.
        problem: What is wrong, in a few words.
    """

    def __init__(self, path: str, shard: str, key: str, begin: int, end: int, problem: str) -> None:
        """Name the sample and its problem."""
        super().__init__(path, shard, key, begin, end, problem)
        self.path, self.shard, self.key, self.problem = path, shard, key, problem
        self.begin, self.end = begin, end


class OpenShard:
    """A shard whose samples can be read, from several threads at once.

    Attributes:
        shard: Its record in the manifest.
        url: Path or URL that it is read from; in the cache, the copy's path.
        index: Offset and size of each sample's members.
        in_memory: Whether its bytes are mapped or in memory, so that reading takes no call of the system.
    """

    def __init__(
        self, shard: Shard, url: str, index: ShardIndex, read: Read, manifest: Manifest, *, in_memory: bool
    ) -> None:
        """Note how the shard is read.

        Args:
            shard: Its record in the manifest.
            url: Path or URL that it is read from.
            index: Offset and size of each sample's members.
            read: Called with offset and size, returns bytes of its tar.
            manifest: The dataset's manifest, which says how many classes there are, and whether another
                tool wrote the tars: text may precede the number of a label then.
            in_memory: Whether these are mapped or in memory.
        """
        self.shard, self.url, self.index, self._read = shard, url, index, read
        self.in_memory, self._adopted, self._classes = in_memory, manifest.adopted, len(manifest.classes)

    def image(self, sample: int) -> memoryview | bytes:
        """Return the bytes of a sample's image.

        Raises:
            OSError: They cannot be read.
        """
        return self._read(self.index.image_offsets[sample], self.index.image_sizes[sample])

    def label(self, sample: int) -> int:
        """Return a sample's label.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not the number of a class.
        """
        data = bytes(self._read(self.index.label_offsets[sample], self.index.label_sizes[sample]))
        if (label := int(label_digits(data, adopted=self._adopted))) >= self._classes:
            raise ValueError(f"its label is {label}, but the manifest names {self._classes} classes")
        return label

    def error(self, sample: int, problem: Exception | str) -> SampleError:
        """Return an error that names a sample and its problem.

        Raises:
            RunError: The problem is that too many files are open.
        """
        if isinstance(problem, Exception):
            refuse_too_many_open_files(problem)
        begin = self.index.image_offsets[sample]
        end = begin + self.index.image_sizes[sample]
        return SampleError(self.url, self.shard.name, self.index.keys[sample], begin, end, str(problem))


class LiveShards:
    """Opens the shards that the batches of an epoch need, and gives them up after their last batch.

    Attributes:
        sizes: Number of samples in each shard of the split.
    """

    def __init__(self, dataset: Dataset, split: str, access: ReadOptions) -> None:
        """Check the options; no file is opened yet.

        Args:
            dataset: The opened dataset.
            split: "train", "val" or "test".
            access: How shards are read.

        Raises:
            UsageError: There is no such split, or the dataset is in a bucket and `mmap` is off.
        """
        self._dataset, self._store = dataset, dataset.store
        self._shards = dataset.shards(split)
        self._split, self._access = split, access
        self.sizes = [shard.samples for shard in self._shards]
        self._cache = None
        if access.cache is not None:
            self._cache = Cache(access.cache, access.cache_limit, dataset.store, dataset.fingerprint)
        elif dataset.store.local is None and not access.mmap:
            raise UsageError(f"{dataset.url}: a bucket's shards are never memory-mapped; leave --no-mmap out")
        self._threads = ThreadPoolExecutor(_STREAMS, thread_name_prefix="alexnet-shards")
        self._over = threading.Event()  # of this epoch: set once nobody needs its shards
        self._waiting: list[Use] = []  # the next use last
        self._open: list[tuple[Use, ExitStack, Future[OpenShard]]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        # For a worker process, which opens files of its own.
        dataset = Dataset(self._dataset.url, self._dataset.manifest)
        return LiveShards, (dataset, self._split, self._access)

    def begin(self, uses: Sequence[Use]) -> None:
        """Start an epoch, or the rest of one: give up all shards and open the first ones in the background.

        Args:
            uses: The shards that are needed, in the order of first use.
        """
        self.release()
        self._over = threading.Event()
        self._waiting = list(reversed(uses))
        self._open_ahead(-1)

    def of_batch(self, number: int) -> "dict[int, Future[OpenShard]]":
        """Return the shards that a batch needs, by their number in the split.

        Batches are asked for in ascending order.

        Returns:
            Futures, some still waiting for their shards. Their `result` raises UsageError if an index cannot
            be read or lists another number of samples than the manifest; RunError if a shard cannot be
            opened or fetched, or its checksum differs from the manifest's; and CancelledError once the shard
            is given up.
        """
        self._open_ahead(number)
        return {use.shard: opened for use, _, opened in self._open if use.first <= number <= use.last}

    def done(self, number: int) -> None:
        """Give up the shards that no batch after `number` needs."""
        for entry in [entry for entry in self._open if entry[0].last <= number]:
            self._open.remove(entry)
            self._give_up(entry)

    def cancel(self) -> None:
        """Open no more shards of this epoch; who waits for one gets a CancelledError."""
        self._over.set()
        self._waiting = []
        for *_, opened in self._open:
            opened.cancel()

    def release(self) -> None:
        """Give up all shards, after `cancel`. Images that were read stay valid."""
        self.cancel()
        held, self._open = self._open, []
        for entry in held:
            self._give_up(entry)

    def close(self) -> None:
        """Give up all shards and start no more fetches; nothing can be opened afterwards."""
        self.release()
        self._threads.shutdown(cancel_futures=True)

    def to_fetch(self, uses: Sequence[Use]) -> list[Shard]:
        """Return which of these shards are neither on this host nor in the cache."""
        if self._cache is None and self._store.local is not None:
            return []
        shards = [self._shards[use.shard] for use in uses]
        return [shard for shard in shards if self._cache is None or not self._cache.holds(shard)]

    def check_limit(self, shards: int) -> None:
        """Check that the cache can hold all shards that this host needs at the same time.

        Args:
            shards: Number of shards that all of this host's processes read at the same time.

        Raises:
            UsageError: The limit is smaller than these shards, with the files of other programs in the
                cache's folder.
        """
        if self._cache is None or self._cache.limit is None:
            return
        everything = sum(shard.bytes for shard in self._dataset.manifest.shards)
        largest = max((shard.bytes for shard in self._dataset.manifest.shards), default=0)
        wanted, foreign = min(shards * largest, everything), self._cache.foreign_bytes()
        if self._cache.limit < wanted + foreign:
            more = f", and {self._cache.folder} holds {foreign:,} bytes of other programs" if foreign else ""
            raise UsageError(
                f"--cache-limit of {self._cache.limit:,} bytes is too little for {self._split} of "
                f"{self._store}: this host reads {number_of(shards, 'shard')} of it at once{more}; give "
                f"at least {wanted + foreign:,}"
            )

    def _open_ahead(self, number: int) -> None:
        """Start opening the shards that batch `number` needs, and the next ones."""
        ahead = sum(use.first > number for use, _, _ in self._open)
        while self._waiting and (self._waiting[-1].first <= max(number, 0) or ahead < AHEAD):
            use, leases = self._waiting.pop(), ExitStack()
            ahead += use.first > number
            opened: Future[OpenShard] = Future()
            self._open.append((use, leases, opened))
            self._threads.submit(self._open_into, opened, use.shard, leases, self._over)

    def _open_into(
        self, opened: Future[OpenShard], number: int, leases: ExitStack, over: threading.Event
    ) -> None:
        """Open a shard, unless it was given up."""
        if opened.cancelled():
            return
        try:
            try:
                shard = self._open_shard(number, leases, over)
            except Exception as error:
                opened.set_exception(error)
            else:
                opened.set_result(shard)
        except InvalidStateError:  # it was given up meanwhile
            leases.close()

    def _open_shard(self, number: int, leases: ExitStack, over: threading.Event) -> OpenShard:
        shard = self._shards[number]
        index = read_index(self._store, shard)
        url, manifest = self._store.url_of(shard.name), self._dataset.manifest
        try:
            if self._cache is not None:
                url = leases.enter_context(self._cache.lease(shard, over))
            elif self._store.local is None:
                data = memoryview(self._store.read(ByteRange(shard.name)))
                whole = lambda offset, size: data[offset : offset + size]  # noqa: E731
                return OpenShard(shard, url, index, whole, manifest, in_memory=True)
            mapped = self._access.mmap
            read = _reader(Path(url), leases, mapped=mapped)
            return OpenShard(shard, url, index, read, manifest, in_memory=mapped)
        except (OSError, ValueError) as error:  # a file of no bytes cannot be mapped
            refuse_too_many_open_files(error)
            raise RunError(
                f"{url}: cannot be read: {getattr(error, 'strerror', None) or error}; `alexnet-prep verify "
                f"{self._dataset.url}` lists what is damaged"
            ) from error

    def _give_up(self, entry: tuple[Use, ExitStack, Future[OpenShard]]) -> None:
        _, leases, opened = entry
        if not opened.cancel():  # it is open, or could not be opened
            leases.close()


def _reader(path: Path, leases: ExitStack, *, mapped: bool) -> Read:
    """Open a tar; return a function (offset, size) → bytes. `leases` closes it."""
    file = leases.enter_context(path.open("rb", buffering=0))
    if hasattr(os, "posix_fadvise"):  # so that a network file system reads it in order
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    if not mapped:
        return lambda offset, size: os.pread(file.fileno(), size, offset)
    data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    file.close()  # the mapping lives as long as views of it do
    return lambda offset, size: data[offset : offset + size]
