"""`manifest.json`: what a prepared dataset is. Written last, so its presence means completeness."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import UsageError
from pipeline.images.statistics import Statistics
from pipeline.storage.atomic import write_bytes
from pipeline.storage.base import ByteRange, Store
from pipeline.storage.open import open_store

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
MEAN_IMAGE = "mean_image.npy"


@dataclass(frozen=True)
class ClassInfo:
    """A class: its `id` (WNID or folder name), and a name to show."""

    id: str
    name: str


@dataclass(frozen=True)
class Shard:
    """A finished tar: its name below the dataset's root, samples, size in bytes and SHA-256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ImageFormat:
    """How images are stored.

    Attributes:
        size: shorter side in pixels, as stored or, in mode "original", after loading.
        mode: "square" (center square of `size`), "aspect" (shorter side `size`, nothing cut) or
            "original" (any size; the loader scales the shorter side to `size`).
        quality: JPEG quality, 1..100, or None where the images were encoded elsewhere.
        subsampling: JPEG chroma subsampling, or None where it is not known.
    """

    size: int
    mode: str
    quality: int | None
    subsampling: str | None = "4:2:0"


ADOPTED = "adopted"
"""The `SourceInfo.layout` of tars that another tool wrote and `alexnet-prep stats` only indexed."""


@dataclass(frozen=True)
class SourceInfo:
    """Where the images came from: layout, or ADOPTED, and the fingerprint of what was listed."""

    layout: str
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """A prepared dataset; design and field units are in docs/formats.md.

    Attributes:
        format: version of this layout.
        image: how images are stored.
        classes: in label order.
        label_width: digits of every .cls member; of an adopted dataset, of its largest label.
        splits: split → shards in order.
        statistics: of the training pixels.
        seed: of the global shuffle and of a validation fraction.
        source: what it was made of.
        settings: the remaining options that the bytes depend on.
        versions: of this tool, the libraries and the architecture that made it.
        mean_image_sha256: checksum of `mean_image.npy`, or None where there is none.
    """

    format: int
    image: ImageFormat
    classes: tuple[ClassInfo, ...]
    label_width: int
    splits: dict[str, tuple[Shard, ...]]
    statistics: Statistics
    seed: int
    source: SourceInfo
    settings: dict[str, Any]
    versions: dict[str, str]
    mean_image_sha256: str | None = None

    @property
    def adopted(self) -> bool:
        """Whether the tars are another tool's: their labels are of any width, and may stand in JSON.

        The index's `cls` entries then end with a label's last digit and begin at the tar's block before.
        """
        return self.source.layout == ADOPTED

    def samples(self, split: str) -> int:
        """Number of samples in a split, 0 where there is none."""
        return sum(shard.samples for shard in self.splits.get(split, ()))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json` atomically."""
    write_bytes(folder / FILE_NAME, to_json(manifest))


def read_manifest(root: Store | Path | str) -> Manifest:
    """Read and check the `manifest.json` of a dataset, here or in a bucket.

    Raises:
        UsageError: no dataset there, an unfinished one, another format version, or damaged JSON.
    """
    store = root if isinstance(root, Store) else open_store(root)
    if not store.is_file(FILE_NAME):
        if store.is_folder(".work"):
            raise UsageError(
                f"{store}: preparation is unfinished (no {FILE_NAME}); run the same "
                "`alexnet-prep shard` command again to complete it"
            )
        raise UsageError(
            f"{store}: not a prepared dataset (no {FILE_NAME}); make one with `alexnet-prep shard`"
        )
    path = store.url_of(FILE_NAME)
    try:
        raw = msgspec.json.decode(store.read(ByteRange(FILE_NAME)))
        version = raw.get("format") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{path}: format version {version!r}, but this release reads {FORMAT_VERSION}; "
                "prepare the dataset again, or use the release that made it"
            )
        return msgspec.convert(raw, Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: damaged ({error}); prepare the dataset again") from error


def to_json(value: object) -> bytes:
    """Encode a dataclass as indented JSON with a final newline; equal values give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
