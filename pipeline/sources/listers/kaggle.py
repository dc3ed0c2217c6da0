"""Lister of Kaggle's ILSVRC 2012: training images in class folders, flat validation images with a CSV."""

from pipeline.errors import UsageError
from pipeline.sources.base import Entry, Listing, is_image, stem_of
from pipeline.sources.labelers.imagenet import has_labels, read_labels
from pipeline.sources.listers.folders import read_class_folders
from pipeline.storage.base import File, Store

_TREE = "ILSVRC/Data/CLS-LOC"
# The source may be the folder that holds ILSVRC, or any folder of the tree that has train/ below it.
_BASES = (_TREE, "Data/CLS-LOC", "CLS-LOC")


def detect(store: Store) -> bool:
    """Whether this is Kaggle's tree, or train/ beside a val/ whose images are not in class folders.

    Images directly in val/ count if they are named like ImageNet's or a label file is in the root.
    """
    if _base(store):
        return True
    if not (store.is_folder("train") and store.is_folder("val")):
        return False
    flat = [name for name in store.names("val") if is_image(name)]
    return any(name.startswith("ILSVRC2012_val_") for name in flat) or (bool(flat) and has_labels(store))


def list_samples(store: Store) -> Listing:
    """List the tree; label files may be in the folder of train/ or in any folder above it, up to the root.

    Validation images in class folders need no label file. Images in test/ have no labels and are left out.

    Raises:
        UsageError: No train/; an unreadable folder; a damaged label file; validation images without a label;
            label files that contradict the images or each other.
    """
    base = _base(store)
    train, val, test = (f"{base}/{split}".lstrip("/") for split in ("train", "val", "test"))
    if not store.is_folder(train):
        raise UsageError(f"source {store}: found no {train} folder; name the folder above ILSVRC")
    notes: list[str] = []
    images, classes = read_class_folders(store, train, notes)
    entries = {"train": images}
    flat: list[File] = []
    labeled = read_class_folders(store, val, notes, flat)[0] if store.is_folder(val) else []
    parts = base.split("/")
    folders = ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]  # from base up to the root
    stems = [stem_of(file.path) for file in flat]
    names, ids = read_labels(store, folders, store.url_of(train), classes, store.url_of(val), stems)
    labeled += [Entry(file.path, class_id, file.size) for file, class_id in zip(flat, ids, strict=True)]
    if labeled:
        entries["val"] = labeled
        classes |= {entry.class_id for entry in labeled}
    elif store.is_folder(val):
        notes.append(f"{store.url_of(val)}: no images, left out")
    if store.is_folder(test):
        notes.append(f"{store.url_of(test)}: left out, its images have no labels")
    return Listing("kaggle", entries, names=names, classes=tuple(sorted(classes)), notes=notes)


def _base(store: Store) -> str:
    """Return the folder that holds train/ or val/; "" if there is no such folder of Kaggle's tree."""
    splits = ((base, f"{base}/{split}") for base in _BASES for split in ("train", "val"))
    return next((base for base, folder in splits if store.is_folder(folder)), "")
