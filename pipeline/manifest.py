"""`manifest.json`: what a prepared dataset is. Written last, so its presence means completeness."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import UsageError
from pipeline.files import write_bytes
from pipeline.shards import Shard
from pipeline.sources import ClassInfo
from pipeline.statistics import Statistics

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
MEAN_IMAGE = "mean_image.npy"


@dataclass(frozen=True)
class ImageFormat:
    """How pictures are stored.

    Attributes:
        size: shorter side in pixels.
        mode: "square" (centre square of `size`) or "aspect" (shorter side `size`, nothing cut).
        quality: JPEG quality, 1..100.
        subsampling: JPEG chroma subsampling.
    """

    size: int
    mode: str
    quality: int
    subsampling: str = "4:2:0"


@dataclass(frozen=True)
class SourceInfo:
    """Where the pictures came from: layout and the fingerprint of what was listed."""

    layout: str
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """A prepared dataset; design and field units are in docs/formats.md.

    Attributes:
        format: version of this layout.
        image: how pictures are stored.
        classes: in label order.
        label_width: digits of every .cls member.
        splits: split → shards in order.
        statistics: of the training pixels.
        seed: of the global shuffle and of a validation fraction.
        source: what it was made of.
        settings: the remaining options that the bytes depend on.
        versions: of this tool, the libraries and the architecture that made it.
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

    def samples(self, split: str) -> int:
        """Number of samples in a split, 0 where there is none."""
        return sum(shard.samples for shard in self.splits.get(split, ()))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json` atomically."""
    write_bytes(folder / FILE_NAME, to_json(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`.

    Raises:
        UsageError: no dataset there, an unfinished one, another format version, or damaged JSON.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        if (folder / ".work").is_dir():
            raise UsageError(
                f"{folder}: preparation is unfinished (no {FILE_NAME}); run the same "
                "`alexnet-prep shard` command again to complete it"
            )
        raise UsageError(
            f"{folder}: not a prepared dataset (no {FILE_NAME}); make one with `alexnet-prep shard`"
        )
    try:
        raw = msgspec.json.decode(path.read_bytes())
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
