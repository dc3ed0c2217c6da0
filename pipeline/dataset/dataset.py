"""`Dataset`: a prepared dataset, opened for reading."""

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.arguments import checked
from pipeline.dataset.index import index_path
from pipeline.dataset.manifest import MEAN_IMAGE, ImageFormat, Manifest, Shard, read_manifest, to_json
from pipeline.dataset.samples import Samples
from pipeline.dataset.shards import check_sizes
from pipeline.errors import UsageError
from pipeline.images.codec import Pixels
from pipeline.images.statistics import Statistics
from pipeline.storage.base import ByteRange, Store
from pipeline.storage.open import open_store

if TYPE_CHECKING:
    import webdataset

Image = TypeVar("Image")


@dataclass(frozen=True)
class Dataset:
    """A dataset that `alexnet-prep shard` wrote; `Dataset.open` opens it.

    Attributes:
        url: path or URL of the dataset's folder.
        manifest: content of its `manifest.json`.

    Examples:
        >>> data = Dataset.open("imagenet")
        >>> len(data.samples("train")), len(data.classes)
        (1281167, 1000)
    """

    url: str
    manifest: Manifest

    @classmethod
    def open(cls, root: str | Path) -> "Dataset":
        """Read a dataset's manifest and compare every shard's size with it.

        Args:
            root: a local folder, or `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`.

        Raises:
            UsageError: there is no dataset, it is unfinished or of another format version, a shard is missing
                or truncated, or credentials for the bucket are missing.
            RunError: the bucket cannot be reached.
        """
        store = open_store(root)
        manifest = read_manifest(store)
        check_sizes(store, manifest.shards)
        return cls(store.url, manifest)

    @cached_property
    def store(self) -> Store:
        """The store that holds the dataset."""
        return open_store(self.url)

    @property
    def root(self) -> Path:
        """Local folder of the dataset.

        Raises:
            UsageError: the dataset is in a bucket.
        """
        folder = self.store.local
        if folder is None:
            raise UsageError(
                f"{self.url}: this needs the dataset on this machine; copy it here first (such as with "
                "`aws s3 sync` or `gcloud storage rsync`) and give the path of the copy"
            )
        return folder

    @property
    def classes(self) -> list[str]:
        """Class ids in label order, such as WNIDs."""
        return [c.id for c in self.manifest.classes]

    @property
    def image(self) -> ImageFormat:
        """Size, mode and JPEG quality of the stored images."""
        return self.manifest.image

    @property
    def statistics(self) -> Statistics:
        """RGB statistics of the training pixels.

        Raises:
            UsageError: the dataset has no training split.
        """
        if self.manifest.statistics is None:
            raise UsageError(
                f"{self.url}: has no training split, only {', '.join(self.manifest.splits)}, and so no "
                "statistics of training pixels; name a dataset with training images"
            )
        return self.manifest.statistics

    @overload
    def samples(self, split: str) -> Samples[Pixels]: ...

    @overload
    def samples(self, split: str, transform: Callable[[Pixels], Image]) -> Samples[Image]: ...

    def samples(self, split: str, transform: Callable[[Pixels], Any] | None = None) -> Samples[Any]:
        """Return a split as a map-style dataset: `samples[i]` is (image, label, key).

        It fits torch's DataLoader, with workers that are forked or spawned.

        Args:
            split: "train", "val" or "test".
            transform: Called with each image, uint8 (H, W, 3); returns what stands in its place. It must be
                picklable where workers are spawned.

        Raises:
            UsageError: the dataset has no such split.
        """
        self.shards(split)
        return Samples(self.store, self.manifest, split, transform)

    @checked(shuffle=(0, math.inf), seed=(0, math.inf), epoch=(0, math.inf))
    def webdataset(
        self, split: str, *, shuffle: int = 0, seed: int = 0, epoch: int = 0, decode: bool = True
    ) -> "webdataset.FluidWrapper":
        """Return one epoch of a split as a pipeline of the webdataset library, to be extended by its methods.

        The shards are dealt out to the processes of a job and to the workers of a DataLoader. Nothing but the
        dataset's own files is opened.

        Args:
            split: "train", "val" or "test".
            shuffle: Samples in the buffer from which each is drawn, after the shards were shuffled; 0 for the
                order of the shards.
            seed: Seed of the order.
            epoch: Number of the epoch, counted from 0: each has another order. Make a pipeline for each.
            decode: Yield (image, label), with the image as uint8 (H, W, 3); else dicts of bytes as webdataset
                reads them, with "__key__", "__url__", "jpg" and "cls".

        Raises:
            UsageError: the dataset has no such split, or a number is below 0. While iterating: there are more
                processes than shards, or a file is missing or damaged.
            RunError: while iterating, a sample is damaged; the message names it.
        """
        from pipeline.dataset.webdataset import pipeline_of

        return pipeline_of(self.samples(split), shuffle, seed, epoch, decode=decode)

    def evaluation_split(self, split: str | None = None) -> str:
        """Return the split to evaluate: the named one, else "val", else the only one.

        Raises:
            UsageError: the dataset has no such split; or none is named and it has several, but no "val".
        """
        splits = list(self.manifest.splits)
        if split is None:
            split = splits[0] if len(splits) == 1 else "val"
            if split not in splits:
                raise UsageError(f"{self.url}: has the splits {', '.join(splits)}; choose one with --split")
        self.shards(split)
        return split

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Return a split's shards in order.

        Raises:
            UsageError: the dataset has no such split.
        """
        if split not in self.manifest.splits:
            remedy = {
                "train": "name a dataset with training images: this one is for evaluation",
                "val": "prepare it with a validation folder or `--val-fraction 0.1`",
            }.get(split, "name one of these")
            raise UsageError(
                f"{self.url}: has no split {split!r}, only {', '.join(self.manifest.splits)}; {remedy}"
            )
        return self.manifest.splits[split]

    def tars(self, split: str) -> list[Path]:
        """Return the local paths of a split's tars, in order; raises UsageError as `root` and `shards` do."""
        return [self.root / shard.name for shard in self.shards(split)]

    def indexes(self, split: str) -> list[Path]:
        """Return the local paths of a split's DALI indexes, in order; raises UsageError as `tars` does."""
        return [index_path(tar) for tar in self.tars(split)]

    def mean_image(self) -> NDArray[np.float32]:
        """Read the mean training image, float32 (size, size, 3), RGB, 0..255.

        Raises:
            UsageError: there is none because the images differ in shape or none are for training, or the file
                is damaged.
        """
        self.shards("train")
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
                "checks the other files; prepare the dataset again"
            ) from error
        return np.asarray(image, np.float32)

    def _why_not_square(self) -> str:
        if self.manifest.adopted:
            return "its tars hold images of different shapes"
        option = {"aspect": "--keep-aspect", "original": "--keep-original"}[self.image.mode]
        return f"prepared with {option}"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest in hexadecimal; covers the shards, whose checksums the manifest holds."""
        return hashlib.sha256(to_json(self.manifest)).hexdigest()
