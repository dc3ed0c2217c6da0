"""`manifest.json`: the description of a dataset. It is written last: a dataset that has one is complete."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import msgspec

from pipeline.errors import UsageError
from pipeline.images.statistics import Statistics
from pipeline.storage.atomic import write_bytes
from pipeline.storage.base import ByteRange, Store, leads_out
from pipeline.storage.open import open_store

FORMAT_VERSION = 2
FILE_NAME = "manifest.json"
MEAN_IMAGE = "mean_image.npy"


ImageMode = Literal["square", "aspect", "original"]


@dataclass(frozen=True)
class ClassInfo:
    """A class: its `id` (WNID or folder name) and its `name` for display."""

    id: str
    name: str


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        name: path of the tar relative to the dataset's root, with /.
        samples: number of samples.
        bytes: size of the tar in bytes.
        sha256: SHA-256 of the tar in hexadecimal.

    Raises:
        ValueError: the name is not that of a tar below the root on every system.
    """

    name: str
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        plain = not leads_out(self.name) and "\\" not in self.name and not PureWindowsPath(self.name).drive
        if not plain or PurePosixPath(self.name).suffix.lower() != ".tar":
            raise ValueError(f"{self.name!r} is no name of a tar below this folder")


@dataclass(frozen=True)
class ImageFormat:
    """Size and encoding of the stored images.

    Attributes:
        size: shorter side in pixels, as stored or, in mode "original", after loading.
        mode: "square" (center square, `size` x `size`), "aspect" (shorter side `size`, nothing cropped) or
            "original" (any size; the loader scales the shorter side to `size`).
        quality: JPEG quality, 1..100, or None if another program encoded the images.
        subsampling: JPEG chroma subsampling, or None if it is unknown.
    """

    size: int
    mode: ImageMode
    quality: int | None
    subsampling: str | None = "4:2:0"


ADOPTED = "adopted"
"""`SourceInfo.layout` of tars that another tool wrote and `alexnet-prep stats` only indexed."""


@dataclass(frozen=True)
class SourceInfo:
    """Source of the images: its layout, or ADOPTED, and the fingerprint of its list of files."""

    layout: str
    fingerprint: str


@dataclass(frozen=True)
class Duplicates:
    """Images of a dataset whose source files have the same bytes.

    Attributes:
        in_train: split ("val" and "test", where present beside "train") → number of its images that are in
            "train" too.
        two_labels: number of images that stand under more than one label.
        dropped: number of training images that were left out (`--drop-duplicates`).
    """

    in_train: dict[str, int]
    two_labels: int
    dropped: int = 0


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`; docs/formats.md describes the format.

    Attributes:
        format: version of the format.
        image: size and encoding of the images.
        classes: classes in label order.
        label_width: number of digits in every .cls member; of an adopted dataset, in its largest label.
        splits: split → shards in order.
        statistics: RGB statistics of the training pixels; None where there is no training split.
        seed: seed of the global shuffle and of the choice of validation images by `--val-fraction`.
        source: source of the images.
        settings: the other options that the shards' bytes depend on.
        versions: versions of this package and of the libraries that wrote it, and the CPU architecture.
        mean_image_sha256: SHA-256 of `mean_image.npy` in hexadecimal, or None if there is no mean image.
        duplicates: images that the source holds more than once, or None if it was not looked for them.
    """

    format: int
    image: ImageFormat
    classes: tuple[ClassInfo, ...]
    label_width: int
    splits: dict[str, tuple[Shard, ...]]
    statistics: Statistics | None
    seed: int
    source: SourceInfo
    settings: dict[str, Any]
    versions: dict[str, str]
    mean_image_sha256: str | None = None
    duplicates: Duplicates | None = None

    @property
    def adopted(self) -> bool:
        """Whether another tool wrote the tars. Their labels have any width and may be in JSON members.

        An index's `cls` entry then starts at the tar block that holds the label and ends with its last digit.
        """
        return self.source.layout == ADOPTED

    @property
    def shards(self) -> list[Shard]:
        """All shards, in the order of the splits."""
        return [shard for shards in self.splits.values() for shard in shards]

    def samples(self, split: str) -> int:
        """Return the number of samples in a split, 0 if there is no such split."""
        return sum(shard.samples for shard in self.splits.get(split, ()))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json` atomically."""
    write_bytes(folder / FILE_NAME, to_json(manifest))


def read_manifest(root: Store | Path | str) -> Manifest:
    """Read and check the `manifest.json` of a dataset.

    Args:
        root: path, URL or opened store of the dataset.

    Raises:
        UsageError: there is no dataset, it is unfinished, damaged or of another format version, or a
            name of a shard leads out of the folder.
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
                f"{_way_on(raw)}, or use the release that made it"
            )
        return msgspec.convert(raw, Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: damaged ({error}); prepare the dataset again") from error


def _way_on(raw: object) -> str:
    """Return how a dataset of another format version is made anew."""
    if (
        isinstance(raw, dict)
        and isinstance(raw.get("source"), dict)
        and raw["source"].get("layout") == ADOPTED
    ):
        return f"remove {FILE_NAME} and index the tars again with `alexnet-prep stats`"
    return "prepare the source again with `alexnet-prep shard`, in a new folder"


def to_json(value: object) -> bytes:
    """Encode a dataclass as indented JSON with a final newline; equal values give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
