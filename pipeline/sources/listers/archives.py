"""Lister of ILSVRC 2012's archives as downloaded; they are read in place and never extracted."""

from collections.abc import Iterable, Iterator

from pipeline.dataset.tar import Member, scan
from pipeline.errors import UsageError
from pipeline.sources.base import Container, Entry, Listing, is_image, note_left_out, stem_of
from pipeline.sources.labelers.devkit import WNID
from pipeline.sources.labelers.imagenet import read_labels
from pipeline.storage.base import Store

TRAIN = "ILSVRC2012_img_train.tar"
"""The training archive: a tar of one tar for each class, nXXXXXXXX.tar, which holds the class's images."""
VAL = "ILSVRC2012_img_val.tar"
"""The validation archive: a tar of images, ILSVRC2012_val_XXXXXXXX.JPEG."""
# MD5 of the files that the ImageNet project distributes; torchvision's datasets/imagenet.py has the same.
_MD5 = {TRAIN: "1d675b47d978889d74fa0da5fadfb00e", VAL: "29b22e2961454d5413ddabcf34fc5622"}
_AGAIN = {name: f"download {name} again (its MD5 is {md5})" for name, md5 in _MD5.items()}


def detect(store: Store) -> bool:
    """Whether the root holds the training archive, or the validation archive without training folders."""
    return store.is_file(TRAIN) or (store.is_file(VAL) and not {"train", "ILSVRC"} & store.names())


def list_samples(store: Store) -> Listing:
    """List both archives; the devkit or Kaggle's CSV beside them gives the validation images their labels.

    The training archive is container 0 and the validation archive container 1; the entries' byte offsets
    count from the start of these files.

    Raises:
        UsageError: No training archive; a damaged archive or label file; validation images without a label;
            label files that contradict the archives or each other.
    """
    if not store.is_file(TRAIN):
        raise UsageError(f"source {store}: found no {TRAIN}; put it beside {VAL} and the devkit")
    notes: list[str] = []
    train, classes = _read_train(store, notes)
    entries, containers = {"train": train}, [Container(TRAIN, store.size(TRAIN))]
    images: list[Member] = []
    url = store.url_of(VAL)
    if store.is_file(VAL):
        with store.open(VAL) as file:
            images, others = _images(scan(file, url, remedy=_AGAIN[VAL]))
        if not images:
            raise UsageError(f"{url}: holds no images; {_AGAIN[VAL]}, or remove it")
        note_left_out(notes, VAL, others, "member", "image")
        containers.append(Container(VAL, store.size(VAL)))
    stems = [stem_of(name) for name, _, _ in images]
    names, ids = read_labels(store, [""], store.url_of(TRAIN), classes, url, stems)
    if images:
        entries["val"] = [
            Entry(name, class_id, size, 1, offset)
            for (name, offset, size), class_id in zip(images, ids, strict=True)
        ]
    return Listing("archives", entries, tuple(containers), names, tuple(sorted(classes | set(ids))), notes)


def _read_train(store: Store, notes: list[str]) -> tuple[list[Entry], set[str]]:
    """Return the training images, and the ids of all classes, including those without images."""
    url = store.url_of(TRAIN)
    entries: list[Entry] = []
    classes: set[str] = set()
    others = 0
    with store.open(TRAIN) as file:
        for tar in _visible(scan(file, url, remedy=_AGAIN[TRAIN])):
            class_id, _, suffix = tar.name.rpartition("/")[2].partition(".")
            if suffix != "tar":
                others += 1
                continue
            if class_id in classes or not WNID.fullmatch(class_id):
                reason = "is there twice" if class_id in classes else "is not named nXXXXXXXX.tar"
                raise UsageError(
                    f"{url}: member {tar.name} at offset {tar.offset:,} {reason}; {_AGAIN[TRAIN]}"
                )
            classes.add(class_id)
            inner = scan(file, f"{url} (in {tar.name})", tar.offset, tar.offset + tar.size, _AGAIN[TRAIN])
            images, skipped = _images(inner)
            others += skipped
            entries += (
                Entry(f"{tar.name}/{name}", class_id, size, 0, offset) for name, offset, size in images
            )
    if not classes:
        raise UsageError(
            f"{url}: holds {others:,} files, but no tar of a class (nXXXXXXXX.tar); {_AGAIN[TRAIN]}"
        )
    note_left_out(notes, TRAIN, others, "member", "image")
    return entries, classes


def _images(members: Iterable[Member]) -> tuple[list[Member], int]:
    """Return the images among the members, and the number of other members."""
    visible = list(_visible(members))
    images = [member for member in visible if is_image(member.name)]
    return images, len(visible) - len(images)


def _visible(members: Iterable[Member]) -> Iterator[Member]:
    """Leave out hidden files, as listing a folder does: macOS's tar adds a `._NAME` to each file."""
    return (member for member in members if "/." not in f"/{member.name}")
