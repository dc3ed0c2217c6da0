"""Kaggle's tree of ILSVRC 2012: class folders to train from, and flat validation images with a CSV."""

from pipeline.errors import UsageError
from pipeline.sources.base import Entry, Listing, is_image, stem_of
from pipeline.sources.labelers.imagenet import Labels, has_labels, read_labels
from pipeline.sources.listers.folders import read_class_folders
from pipeline.storage.base import File, Store

_TREE = "ILSVRC/Data/CLS-LOC"
# The source may be the folder above the tree, or any folder of the tree that still holds train/.
_BASES = (_TREE, "Data/CLS-LOC", "CLS-LOC")


def detect(store: Store) -> bool:
    """Whether the tree is there, or train/ beside a val/ whose images lie in no class folders.

    The latter are ImageNet's by their names, or by a file of labels beside them.
    """
    if _base(store):
        return True
    if not (store.is_folder("train") and store.is_folder("val")):
        return False
    flat = [name for name in store.names("val") if is_image(name)]
    return any(name.startswith("ILSVRC2012_val_") for name in flat) or (bool(flat) and has_labels(store))


def list_samples(store: Store) -> Listing:
    """List the tree; label files are looked for in it and in each folder above it, up to the root.

    Validation images in class folders need no label file. Those of test/ have no labels and are left out.

    Raises:
        UsageError: no train/; an unreadable folder; a damaged label file; validation images without a
            label; label files that match neither the images nor each other.
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
    """The folder of train/ and val/; "" where there is no folder of Kaggle's tree."""
    splits = ((base, f"{base}/{split}") for base in _BASES for split in ("train", "val"))
    return next((base for base, folder in splits if store.is_folder(folder)), "")


def _upwards(base: str) -> list[str]:
    """`base`, the folders above it, and the root, ""."""
    folders = [base]
    while folders[-1]:
        folders.append(folders[-1].rpartition("/")[0])
    return folders


def _read_val(store: Store, folder: str, notes: list[str]) -> tuple[list[Entry], list[File]]:
    """Validation images that lie in class folders, and those that need a label."""
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
        what = "file is" if others == 1 else "files are"
        notes.append(f"{store.url_of(folder)}: {others:,} {what} no image, left out")
    if not entries and not flat:
        notes.append(f"{store.url_of(folder)}: no images, left out")
    return entries, flat


def _labeled(flat: list[File], labels: Labels, place: str) -> list[Entry]:
    if not flat:
        return []
    ids = labels.classes_of(place, [stem_of(file.path) for file in flat])
    return [Entry(file.path, class_id, file.size) for file, class_id in zip(flat, ids, strict=True)]
