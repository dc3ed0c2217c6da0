"""How DALI gets at a dataset's shards: mapped, read, straight from a bucket, or from a local cache."""

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.index import index_name, to_index
from pipeline.errors import RunError, UsageError
from pipeline.loader.order import Piece, most_bytes
from pipeline.loader.shard_cache import Cache
from pipeline.storage.base import ByteRange

# Protocols that DALI's reader opens itself.
_DALI_READS = ("s3://", "gs://")


@dataclass(frozen=True)
class ReadOptions:
    """How shards are read.

    Attributes:
        mmap: map tars into memory; off for network file systems, where a mapped page that cannot be
            fetched kills the process.
        cache: folder on a local disk to which shards are brought before they are read, in the order of
            the epoch; None reads them where they are.
        cache_limit: bytes that the folder may hold, None for as many as come.
    """

    mmap: bool = True
    cache: Path | None = None
    cache_limit: int | None = None


@dataclass(frozen=True)
class OpenShards:
    """Tars and indexes of a segment, in place until `release`.

    Attributes:
        tars, indexes: paths of a pair for each piece, in order.
        names: the tars' names in the dataset.
        samples: in all of them.
        mmap: whether DALI shall map the tars.
        release: to be called once.
    """

    tars: list[str]
    indexes: list[str]
    names: list[str]
    samples: int
    mmap: bool
    release: Callable[[], None]


class ShardFiles:
    """Hands out a split's pieces, as files that DALI opens."""

    def __init__(self, dataset: Dataset, split: str, access: ReadOptions) -> None:
        """Look at nothing yet.

        Raises:
            UsageError: a bucket that DALI cannot read, or `mmap` off for one, and no cache.
        """
        self._store, self._shards = dataset.store, dataset.shards(split)
        self._split = split
        self._everything = sum(shard.bytes for shards in dataset.manifest.splits.values() for shard in shards)
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
            raise UsageError(f"{dataset.url}: nothing of a bucket is mapped into memory; leave --no-mmap out")
        self._numbers = itertools.count()
        self._remove_folder: Callable[[], object] = lambda: None
        # A tar that two pieces share is next to itself, or opens and ends the epoch.
        self._index = lru_cache(maxsize=4)(self._read_index)

    def acquire(self, pieces: Sequence[Piece]) -> OpenShards:
        """Bring a segment's tars and indexes in place.

        Raises:
            UsageError: an index that does not hold what the manifest says.
            RunError: a shard cannot be fetched, or is not what the manifest says.
        """
        numbers = list(dict.fromkeys(piece.shard for piece in pieces))
        shards = [self._shards[number] for number in numbers]
        with ExitStack() as held:
            if self._cache is None:
                paths = [self._store.url_of(shard.name) for shard in shards]
            else:
                lease = self._cache.lease(shards)
                held.callback(lease.release)
                paths = lease.paths
            where = dict(zip(numbers, paths, strict=True))
            return OpenShards(
                tars=[where[piece.shard] for piece in pieces],
                indexes=[self._index_of(piece, held) for piece in pieces],
                names=[self._shards[piece.shard].name for piece in pieces],
                samples=sum(piece.samples for piece in pieces),
                mmap=self._mmap,
                release=held.pop_all().close,
            )

    def check_limit(self, samples: int, holders: int) -> None:
        """Refuse a cache that may not hold what is needed at once, in whichever epoch.

        Args:
            samples: of a segment, at most.
            holders: segments that are held at once.

        Raises:
            UsageError: the limit is below that, and below the whole dataset.
        """
        if self._cache is None or self._cache.limit is None:
            return
        sizes = [shard.bytes for shard in self._shards]
        most = most_bytes([shard.samples for shard in self._shards], sizes, samples)
        wanted = min(holders * most, self._everything)
        if self._cache.limit < wanted:
            raise UsageError(
                f"--cache-limit of {self._cache.limit:,} bytes is too little for {self._split} of "
                f"{self._store}: {holders} segments of it may be in use here at once; give at least "
                f"{wanted:,}"
            )

    @cached_property
    def _folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="alexnet-index-"))
        self._remove_folder = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def stop(self) -> None:
        """Give up what is being fetched."""
        if self._cache is not None:
            self._cache.stop()

    def close(self) -> None:
        """Delete the indexes that were made."""
        self._remove_folder()

    def _index_of(self, piece: Piece, held: ExitStack) -> str:
        """Path of an index of this piece alone; one that is made goes with `held`."""
        shard = self._shards[piece.shard]
        if self._store.local is not None and piece.samples == shard.samples:
            return self._store.url_of(index_name(shard.name))
        lines = self._index(piece.shard)[piece.first : piece.last]
        try:
            path = self._folder / f"{next(self._numbers)}.idx"
            path.write_bytes(to_index(lines))
        except OSError as error:
            raise RunError(
                f"{error.filename or tempfile.gettempdir()}: {error.strerror or error}, so that an index of "
                f"{shard.name} cannot be written; make room there, or set TMPDIR to another folder"
            ) from error
        held.callback(path.unlink, missing_ok=True)
        return str(path)

    def _read_index(self, number: int) -> list[str]:
        shard = self._shards[number]
        name = index_name(shard.name)
        try:
            lines = self._store.read(ByteRange(name)).decode().splitlines()[1:]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{self._store.url_of(name)}: unreadable ({error}); "
                f"`alexnet-prep verify {self._store}` names all such files; prepare the dataset again"
            ) from error
        if len(lines) != shard.samples:
            raise UsageError(
                f"{self._store.url_of(name)}: lists {len(lines)} samples, but the manifest says "
                f"{shard.samples}; `alexnet-prep verify {self._store}` names what differs"
            )
        return lines
