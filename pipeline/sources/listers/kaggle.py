"""Lister of Kaggle's ILSVRC 2012: training images in class folders, flat validation images with a CSV."""

from pipeline.errors import UsageError
from pipeline.sources.base import Entry, Listing, is_image, stem_of
from pipeline.sources.labelers.imagenet import Labels, has_labels, read_labels
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
    sorted_in, flat = _read_val(store, val, notes)
    labels = read_labels(store, _upwards(base), labels=bool(flat))
    labels.check_classes(store.url_of(train), classes)
    if sorted_in or flat:
        entries["val"] = sorted_in + _labeled(flat, labels, store.url_of(val))
        classes |= {entry.class_id for entry in entries["val"]}
    if store.is_folder(test):
        notes.append(f"{store.url_of(test)}: left out, its images have no labels")
    return Listing("kaggle", entries, names=labels.names, classes=tuple(sorted(classes)), notes=notes)


def _base(store: Store) -> str:
    """Return the folder that holds train/ or val/; "" if there is no such folder of Kaggle's tree."""
    splits = ((base, f"{base}/{split}") for base in _BASES for split in ("train", "val"))
    return next((base for base, folder in splits if store.is_folder(folder)), "")


def _upwards(base: str) -> list[str]:
    """Return `base`, the folders above it, and the root, ""."""
    folders = [base]
    while folders[-1]:
        folders.append(folders[-1].rpartition("/")[0])
    return folders


def _read_val(store: Store, folder: str, notes: list[str]) -> tuple[list[Entry], list[File]]:
    """Return the validation images in class folders, and those directly in `folder`, which need a label."""
    if not store.is_folder(folder):
        return [], []
    entries: list[Entry] = []
    flat: list[File] = []
    others = 0
    for file in store.walk(folder)[0]:
        class_id, _, below = file.path[len(folder) + 1 :].partition("/")
        if not is_image(file.path):
            others += 1
        elif below:
            entries.append(Entry(file.path, class_id, file.size))
        else:
            flat.append(file)
    if others:
        plural = "file is" if others == 1 else "files are"
        notes.append(f"{store.url_of(folder)}: {others:,} {plural} no image, left out")
    if not entries and not flat:
        notes.append(f"{store.url_of(folder)}: no images, left out")
    return entries, flat


def _labeled(flat: list[File], labels: Labels, url: str) -> list[Entry]:
    if not flat:
        return []
    ids = labels.classes_of(url, [stem_of(file.path) for file in flat])
    return [Entry(file.path, class_id, file.size) for file, class_id in zip(flat, ids, strict=True)]
