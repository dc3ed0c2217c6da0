"""Records of a source: images as they are listed, and the checked source that a dataset is made from.

`tree` lists what lies in a source, `detection` reads its splits and labels from it into a `Listing`, and
`build` checks the listing, orders the classes and assigns the keys. Sources with the same file names and
classes get the same keys and labels, and therefore the same shards.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from pipeline.arguments import COUNT, LEAST, check_record
from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError
from pipeline.sources.left_out import LeftOut

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .tif .tiff .ppm .pgm .pbm .pnm .avif .heic .heif".split()  # noqa: SIM905
)
"""Suffixes of image files, in lower case; what a file really is, its content says."""

FILE = -1
"""`container` of a sample that is a file of its own."""
UNKNOWN = -1
"""`size` of a sample whose size is known only after reading it: rows of Parquet files, links to nowhere."""

Layout = Literal["auto", "images", "classes", "webdataset", "parquet"]
"""What is read of a source: all, if it is of one kind ("auto"); images in folders and archives ("images"), of
which no folder is a split ("classes"); tars or Parquet files whose images have labels of their own."""

Label = int | str
"""A label as a source gives it."""


class Image(msgspec.Struct, gc=False):
    """An image as a lister lists it.

    Attributes:
        path: Path of the file below the source's root, or of the member in its container. The stem of its
            last part becomes the key.
        size: Size in bytes, or UNKNOWN.
        container: Index into the source's containers, or FILE.
        offset: Byte offset of the data in a tar, -1 for a link to what is not in it; number of the row in a
            Parquet file, or of the member in a zip; 0 for a file of its own.
        label: Label in the source, such as a number beside the image; None where there is none. A labeler
            sets it to the id of the image's class, such as a WNID or a folder's name.
    """

    path: str
    size: int
    container: int = FILE
    offset: int = 0
    label: Label | None = None


class Sample(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One image of a source or plan: an `Image` with its label (0..K-1) and its key in the shards."""

    path: str
    label: int
    key: str
    size: int = UNKNOWN
    container: int = FILE
    offset: int = 0


@dataclass(frozen=True)
class Container:
    """A file that holds many images: its path below the root, and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How a source is read, where its names do not say it.

    Attributes:
        layout: What is read of a source that holds several kinds of images.
        splits: Split ("train", "val", "test") → path of its folder, archive or file below the root; None
            finds the splits by their names.
        labels: Path of a table of labels: a CSV, TSV, Parquet or JSON-lines file, relative to the root or
            absolute.
        path_column, label_column: Names of the table's columns.
        classes: Names of the classes, in label order; images of other classes are left out. None takes all,
            sorted.
        val_fraction: Share of each class, in (0, 1), that becomes the "val" split. Only for sources without
            validation images.
        max_per_class: Largest number of images of a class in each split, or None.
        fraction: Share of each class's images to keep in each split, in (0, 1], or None.
        seed: Seed of these choices.
        max_bad: Share of the archives, 0..1, that may be damaged: what lies before the damage is read, and
            the report says so.

    Raises:
        UsageError: A word or number is out of its range, or columns are named without a table.
    """

    layout: Layout = "auto"
    splits: Mapping[str, str] | None = None
    labels: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    classes: tuple[str, ...] | None = None
    val_fraction: float | None = None
    max_per_class: int | None = None
    fraction: float | None = None
    seed: int = 0
    max_bad: float = 0.0

    def __post_init__(self) -> None:
        check_record(self, max_per_class=COUNT, fraction=(LEAST, 1), max_bad=(0, 1))
        if self.labels is None and (self.path_column or self.label_column):
            option = "--path-column" if self.path_column else "--label-column"
            raise UsageError(f"{option} names a column, but no table is given; add --labels FILE")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UsageError(f"val_fraction is {self.val_fraction:g}, not between 0 and 1; 0.1 is usual")


AS_FOUND = SourceOptions()
"""Splits, labels and classes by the names in the source, and all of its images."""


@dataclass
class Listing:
    """Images and classes of a source.

    Attributes:
        layout: Kind of the source, for the manifest: "images", "webdataset" or "parquet", joined by "+".
        images: Split ("train", "val" and "test" where present) → images, in any order; their labels are
            ids of classes.
        containers: Containers that the images refer to.
        names: Class id → name to show, where known.
        classes: Ids of all classes in label order; None sorts the ids of the images.
        notes: Lines to show to the user, such as what each split was read from.
        left_out: Files of the source that are no samples.
    """

    layout: str
    images: dict[str, list[Image]]
    containers: tuple[Container, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    notes: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


@dataclass(frozen=True)
class Source:
    """A listed and checked source: the input of `make_plan` and `prepare`.

    Attributes:
        root: Path or URL of the folder that paths are relative to.
        layout: Kind of the source, for the manifest.
        classes: Classes in label order.
        splits: Split ("train", "val" and "test" where present) → samples.
        containers: Containers that the samples refer to.
        notes: Lines to show to the user, such as what each split was read from.
        left_out: Files of the source that are no samples.
        options: How the source was read.
    """

    root: str
    layout: str
    classes: tuple[ClassInfo, ...]
    splits: dict[str, list[Sample]]
    containers: tuple[Container, ...] = ()
    notes: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    options: SourceOptions = AS_FOUND

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the containers, and of each sample's split, container, path, label and size."""
        digest = hashlib.sha256()
        for container in self.containers:
            digest.update(f"{container.path}\0{container.size}\n".encode())
        for split, samples in self.splits.items():
            for s in samples:
                digest.update(f"{split}\0{s.container}\0{s.path}\0{s.label}\0{s.size}\n".encode())
        return digest.hexdigest()


def is_image(path: str) -> bool:
    """Whether a file name ends with an image suffix, in upper or lower case."""
    dot = path.rfind(".")
    return dot > path.rfind("/") + 1 and path[dot:].lower() in IMAGE_SUFFIXES
