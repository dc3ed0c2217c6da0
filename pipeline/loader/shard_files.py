"""Open a split's shards for DALI: memory-mapped, read, streamed from a bucket, or from a local cache."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from pipeline.arguments import COUNT, check_record
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.index import index_name, read_index, to_index
from pipeline.errors import RunError, UsageError
from pipeline.host import refuse_too_many_open_files
from pipeline.loader.order import Piece, most_bytes
from pipeline.loader.shard_cache import Cache

# URL schemes that DALI's reader opens itself.
_DALI_READS = ("s3://", "gs://")


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


@dataclass(frozen=True)
class OpenShards:
    """Tar and index files of one segment; they stay readable until `release`.

    Attributes:
        tars, indexes: Path or URL of the tar and path of the index of each piece, in reading order.
        names: Name of each tar in the dataset (`train/train-000000.tar`).
        samples: Number of samples in all pieces.
        mmap: Whether DALI maps the tars into memory.
        release: Gives the files up: ends the cache's lease and deletes temporary indexes. Call it once.
    """

    tars: list[str]
    indexes: list[str]
    names: list[str]
    samples: int
    mmap: bool
    release: Callable[[], None]


class ShardFiles:
    """Opens pieces of a split as tar and index files that DALI reads.

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
            UsageError: There is no cache, and the dataset is in a bucket that DALI cannot read, or is in
                one that it can read and `mmap` is off.
        """
        self._dataset, self._store = dataset, dataset.store
        self._split, self._shards = split, dataset.shards(split)
        self.sizes = [shard.samples for shard in self._shards]
        self._mmap = access.mmap
        self._cache = None
        if access.cache is not None:
            self._cache = Cache(access.cache, access.cache_limit, dataset.store, dataset.fingerprint)
        elif dataset.store.local is None and not dataset.url.startswith(_DALI_READS):
            raise UsageError(
                f"{dataset.url}: DALI reads {' and '.join(_DALI_READS)} only; give --cache with a folder on "
                "this host"
            )
        elif dataset.store.local is None and not access.mmap:
            raise UsageError(f"{dataset.url}: a bucket's shards are never memory-mapped; leave --no-mmap out")
        # Two pieces of one tar are adjacent in reading order, or the first and the last of an epoch.
        self._index = lru_cache(maxsize=4)(partial(read_index, dataset.store))

    def acquire(self, pieces: Sequence[Piece]) -> OpenShards:
        """Open a segment's tars and indexes, fetching its shards into the cache if there is one.

        Args:
            pieces: The segment's pieces, in reading order.

        Raises:
            UsageError: An index cannot be read, or lists another number of samples than the manifest.
            RunError: A shard cannot be fetched or its checksum differs from the manifest's, or an index
                cannot be written.
        """
        wanted = [self._shards[piece.shard] for piece in pieces]
        shards = list(dict.fromkeys(wanted))
        with ExitStack() as cleanup:
            if self._cache is None:
                paths = [self._store.url_of(shard.name) for shard in shards]
            else:
                paths = cleanup.enter_context(self._cache.lease(shards))
            tar_of = dict(zip(shards, paths, strict=True))
            return OpenShards(
                tars=[tar_of[shard] for shard in wanted],
                indexes=[self._index_of(piece, cleanup) for piece in pieces],
                names=[shard.name for shard in wanted],
                samples=sum(piece.samples for piece in pieces),
                mmap=self._mmap,
                release=cleanup.pop_all().close,
            )

    def check_limit(self, samples: int, holders: int) -> None:
        """Check that the cache can hold all shards that are in use at the same time, in any epoch.

        Args:
            samples: Largest number of samples in a segment.
            holders: Number of segments that this host's processes hold at the same time.

        Raises:
            UsageError: The limit is smaller than these segments' shards and than the dataset, with the files
                of other programs in the cache's folder.
        """
        if self._cache is None or self._cache.limit is None:
            return
        most = most_bytes(self.sizes, [shard.bytes for shard in self._shards], samples)
        wanted = min(holders * most, sum(shard.bytes for shard in self._dataset.manifest.shards))
        foreign = self._cache.foreign_bytes()
        if self._cache.limit < wanted + foreign:
            more = f", and {self._cache.folder} holds {foreign:,} bytes of other programs" if foreign else ""
            raise UsageError(
                f"--cache-limit of {self._cache.limit:,} bytes is too little for {self._split} of "
                f"{self._store}: this host may use {holders} segments of it at once{more}; give at least "
                f"{wanted + foreign:,}"
            )

    def stop(self) -> None:
        """Start no more fetches, and end those that wait for room; `acquire` then raises."""
        if self._cache is not None:
            self._cache.stop()

    def _index_of(self, piece: Piece, cleanup: ExitStack) -> str:
        """Return the path of an index of just this piece; `cleanup` deletes it if it had to be written."""
        shard = self._shards[piece.shard]
        if self._store.local is not None and piece.samples == shard.samples:
            return self._store.url_of(index_name(shard.name))
        samples = self._index(shard)[piece.first : piece.last]
        try:
            file = tempfile.NamedTemporaryFile(prefix="alexnet-index-")  # noqa: SIM115 - `cleanup` closes it
            cleanup.enter_context(file)
            file.write(to_index([sample.items() for sample in samples]))
            file.flush()
        except OSError as error:
            refuse_too_many_open_files(error)
            raise RunError(
                f"{error.filename or tempfile.gettempdir()}: cannot write an index of {shard.name}: "
                f"{error.strerror or error}; make room there, or set TMPDIR to another folder"
            ) from error
        return file.name
