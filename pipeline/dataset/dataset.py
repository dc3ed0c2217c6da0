"""A prepared dataset, opened for reading."""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.index import index_path
from pipeline.dataset.manifest import MEAN_IMAGE, ImageFormat, Manifest, Shard, read_manifest, to_json
from pipeline.dataset.tar import check_sizes
from pipeline.errors import UsageError
from pipeline.images.statistics import Statistics
from pipeline.storage.base import ByteRange, Store
from pipeline.storage.open import open_store


@dataclass(frozen=True)
class Dataset:
    """What `alexnet-prep shard` wrote, with its sizes checked.

    >>> data = Dataset.open("imagenet")            # doctest: +SKIP
    >>> data.samples("train"), len(data.classes)   # doctest: +SKIP
    (1281167, 1000)
    """

    url: str
    manifest: Manifest

    @classmethod
    def open(cls, root: str | Path) -> "Dataset":
        """Read the manifest and compare every shard's size with it.

        Args:
            root: a folder here, or `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`.

        Raises:
            UsageError: no dataset, an unfinished one, another format version, a missing or
                truncated shard, or a bucket without credentials.
        """
        store = open_store(root)
        manifest = read_manifest(store)
        check_sizes(store, [shard for shards in manifest.splits.values() for shard in shards])
        return cls(store.url, manifest)

    @cached_property
    def store(self) -> Store:
        """The folder or bucket that it lies in."""
        return open_store(self.url)

    @property
    def root(self) -> Path:
        """Its folder on this machine.

        Raises:
            UsageError: it lies in a bucket.
        """
        folder = self.store.local
        if folder is None:
            raise UsageError(
                f"{self.url}: this needs the dataset on this machine; copy it here first (such as with "
                "`aws s3 sync` or `gcloud storage rsync`), and name the copy"
            )
        return folder

    @property
    def classes(self) -> list[str]:
        """Class ids in label order."""
        return [c.id for c in self.manifest.classes]

    @property
    def image(self) -> ImageFormat:
        """How the images are stored."""
        return self.manifest.image

    @property
    def statistics(self) -> Statistics:
        """RGB statistics of the training pixels."""
        return self.manifest.statistics

    def samples(self, split: str) -> int:
        """Samples in a split."""
        return sum(shard.samples for shard in self.shards(split))

    def shards(self, split: str) -> tuple[Shard, ...]:
        """A split's shards in order.

        Raises:
            UsageError: the dataset has no such split.
        """
        if split not in self.manifest.splits:
            raise UsageError(
                f"{self.url}: has no split {split!r}, only {', '.join(self.manifest.splits)}; "
                "prepare it with a validation folder or `--val-fraction 0.1`"
            )
        return self.manifest.splits[split]

    def tars(self, split: str) -> list[Path]:
        """Paths of a split's tars on this machine, in order."""
        return [self.root / shard.name for shard in self.shards(split)]

    def indexes(self, split: str) -> list[Path]:
        """Paths of a split's DALI indexes on this machine, in order."""
        return [index_path(tar) for tar in self.tars(split)]

    def mean_image(self) -> NDArray[np.float32]:
        """Mean training image, float32 (size, size, 3), RGB, 0..255.

        Raises:
            UsageError: the images are of different shapes, so there is none, or the file is damaged.
        """
        if self.image.mode != "square":
            raise UsageError(
                f"{self.url}: {self._why_not_square()}, so it has no mean image; use the "
                "per-channel mean (`--set mean=channel`)"
            )
        try:
            image = np.load(io.BytesIO(self.store.read(ByteRange(MEAN_IMAGE))), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(
                f"{self.store.url_of(MEAN_IMAGE)}: unreadable ({error}); `alexnet-prep verify {self.url}` "
                "checks the rest; prepare the dataset again"
            ) from error
        return np.asarray(image, np.float32)

    def _why_not_square(self) -> str:
        if self.manifest.adopted:
            return "its tars hold images of different shapes"
        option = {"aspect": "--keep-aspect", "original": "--keep-original"}[self.image.mode]
        return f"prepared with {option}"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which holds every shard's checksum."""
        return hashlib.sha256(to_json(self.manifest)).hexdigest()
