"""Lister of tars and zips: their images, by folder, and the labels that lie beside images.

Tars are read in place and never extracted. Tars inside of a tar, such as the class tars of ImageNet's
training archive, are folders of it. A tar with labels beside its images is a WebDataset tar; `webdataset`
beside this module says which members are one sample.
"""

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from pipeline.dataset.tar import Member, scan
from pipeline.errors import DamageError, UsageError
from pipeline.sources.base import Container, Image, Label, is_image
from pipeline.sources.left_out import is_debris
from pipeline.sources.listers.webdataset import (
    LABELS,
    SamplePart,
    label_of,
    part_of,
    samples_of,
    with_content,
)
from pipeline.sources.opening import ZIP, reading, unpacked
from pipeline.storage.base import Store

# ImageNet's archives: what to do about a damaged one. Their MD5 sums are those of image-net.org's download
# page; torchvision's datasets/imagenet.py has them too.
_SUMS = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
}


@dataclass
class Archive:
    """Content of an archive.

    Attributes:
        folders: Path of a folder, with the archive's in front → its images without labels.
        labeled: Images with labels of their own.
        labels: Key of a sample → its label, for labels without an image in this archive.
        archives: Path of this archive, and of the tars in it.
        others: Paths of the other members.
        debris: Paths of the members that systems and tools leave behind.
        damage: What is damaged, where, and what to do about it; "" for a whole archive. Then the content is
            what lies before the damage.
    """

    folders: dict[str, list[Image]] = field(default_factory=dict)
    labeled: list[Image] = field(default_factory=list)
    labels: dict[str, Label] = field(default_factory=dict)
    archives: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)
    debris: list[str] = field(default_factory=list)
    damage: str = ""

    def add(self, container: Container, images: Iterable[Image]) -> None:
        """Add images without labels to their folders."""
        folder, members = None, list[Image]()
        for image in images:
            above = image.path.rpartition("/")[0]
            if above != folder:
                folder = above
                path = f"{container.path}/{folder}" if folder else container.path
                members = self.folders.setdefault(path, [])
            members.append(image)


def read_archive(store: Store, container: Container, number: int) -> Archive:
    """List a tar or zip.

    Args:
        store: The source.
        container: The archive.
        number: Index of the container in the source's list.

    Raises:
        UsageError: Its compression needs a package that is not installed, or a member is encrypted; see also
            `pipeline.sources.listers.webdataset.label_of`.
        RunError: It cannot be read.
    """
    if container.path.lower().endswith(ZIP):
        return _read_zip(store, container, number)
    archive = Archive(archives={container.path})
    url = store.url_of(container.path)
    sum_of = _SUMS.get(container.path.rpartition("/")[2])
    remedy = "download it again" + (f" (its MD5 is {sum_of})" if sum_of else "")
    found: list[Image | SamplePart] = []
    try:
        with unpacked(store, container) as file:
            for item in _members(file, url, remedy, archive, container, number):
                found.append(item)  # one by one, to keep those before the damage
    except DamageError as error:
        archive.damage = str(error).removeprefix(url).lstrip(": ")
    images = [item for item in found if isinstance(item, Image)]
    if len(images) < len(found):
        _add_samples(archive, container, url, found)
    else:
        archive.add(container, images)
    return archive


def _members(
    file: BinaryIO,
    url: str,
    remedy: str,
    archive: Archive,
    container: Container,
    number: int,
    inside: str = "",
    start: int = 0,
    end: int | None = None,
) -> Iterator[Image | SamplePart]:
    """Yield a tar's images, and the labels with their bytes; a tar inside of it is a folder of it."""
    above = f"{inside}/" if inside else ""
    shown = f"{url} (in {inside})" if inside else url
    for name, offset, size in scan(file, shown, start, end, remedy, follow_links=True):
        path = above + name
        if any(map(is_debris, name.split("/"))):
            archive.debris.append(path)
        elif is_image(name):
            yield Image(path, size, number, offset)
        elif offset < 0:
            archive.others.append(path)
        elif name.endswith(".tar"):
            if f"{container.path}/{path}" in archive.archives:
                raise UsageError(f"{url}: member {name} at offset {offset:,} is there twice; {remedy}")
            archive.archives.add(f"{container.path}/{path}")
            yield from _members(file, url, remedy, archive, container, number, path, offset, offset + size)
        elif name.lower().endswith(LABELS) and (part := part_of(Member(path, offset, size))):
            yield with_content(file, part, url)
        else:
            archive.others.append(path)


def _add_samples(archive: Archive, container: Container, url: str, found: list[Image | SamplePart]) -> None:
    """Join images and labels: members of one sample that lie side by side, then those with one key.

    Images without a label are left out of a damaged archive, as their labels may lie behind the damage.
    """
    images = {(item.path, item.offset): item for item in found if isinstance(item, Image)}
    unlabeled: dict[str, Image] = {}
    parts = (part_of(_member(item)) if isinstance(item, Image) else item for item in found)
    for sample in samples_of(part for part in parts if part):
        label = label_of(sample, url)
        part = sample.get("image")
        if label is None and "json" in sample:
            archive.others.append(sample["json"].member.name)
        if part is None:
            if label is not None:
                archive.labels[next(iter(sample.values())).key] = label
            continue
        image = images[part.member.name, part.member.offset]
        image.label = label
        if label is None:
            unlabeled[part.key] = image
        else:
            archive.labeled.append(image)
    for key, image in unlabeled.items():
        if key in archive.labels:
            image.label = archive.labels.pop(key)
            archive.labeled.append(image)
        elif archive.labeled and archive.damage:
            archive.others.append(image.path)
        elif archive.labeled:
            archive.labeled.append(image)  # `to_classes` refuses a split that has labels for a part only
        else:
            archive.add(container, [image])


def _member(image: Image) -> Member:
    return Member(image.path, image.offset, image.size)


class LabelPool:
    """Joins the images of one tar and the labels of another by the samples' keys."""

    def __init__(self) -> None:
        self._labels: dict[str, tuple[Label, str]] = {}

    def add(self, archive: Archive, url: str) -> None:
        """Remember the labels of an archive that have no image in it.

        Raises:
            UsageError: Another archive has a label of the same key.
        """
        for key, label in archive.labels.items():
            if (other := self._labels.setdefault(key, (label, url))[1]) != url:
                raise UsageError(
                    f"{url}: {key} has no image in there, and a label of the same key lies in {other}: "
                    "which images they are of cannot be told; put images and labels into one tar"
                )

    def join(self, folders: dict[str, list[Image]], labeled: dict[str, list[Image]]) -> None:
        """Move the folders whose images have labels now from `folders` to `labeled`.

        Raises:
            UsageError: A label has no image, or images in two folders.
        """
        taken: dict[str, str] = {}  # key → its folder
        for folder in list(folders) if self._labels else ():
            parts = [part_of(_member(image)) for image in folders[folder]]
            keys = [part.key if part else "" for part in parts]
            if both := next((key for key in keys if key in taken), None):
                raise UsageError(
                    f"{folder}: the label of {both} may be of its image in there or in {taken[both]}; put "
                    "images and labels into one tar"
                )
            if not any(key in self._labels for key in keys):
                continue
            taken |= {key: folder for key in keys if key in self._labels}
            for image, key in zip(folders[folder], keys, strict=True):
                image.label = self._labels.pop(key, (None, ""))[0]
            labeled.setdefault(folder, []).extend(folders.pop(folder))
        if self._labels:
            key, (_, url) = next(iter(self._labels.items()))
            count = len(self._labels) - 1
            others = f", and {count:,} more labels have none" if count else ""
            raise UsageError(
                f"{url}: {key} has a label and no image{others}; add images or remove the labels"
            )


def _read_zip(store: Store, container: Container, number: int) -> Archive:
    """List a zip: an image's offset is its number among the zip's members."""
    archive = Archive(archives={container.path})
    images: list[Image] = []
    url = store.url_of(container.path)
    try:
        with (
            reading(url, "zip file", zipfile.BadZipFile),
            store.open(container.path, read_ahead=False) as file,
        ):
            members = zipfile.ZipFile(file).infolist()
    except DamageError as error:
        archive.damage = str(error).removeprefix(url).lstrip(": ")
        return archive
    for row, member in enumerate(members):
        name = member.filename.removeprefix("./")
        if member.is_dir():
            continue
        if any(map(is_debris, name.split("/"))):
            archive.debris.append(name)
            continue
        if member.flag_bits & 1:
            raise UsageError(f"{url}: {name} is encrypted; unpack the archive and name the folder")
        if is_image(name):
            images.append(Image(name, member.file_size, number, row))
        else:
            archive.others.append(name)
    archive.add(container, images)
    return archive
