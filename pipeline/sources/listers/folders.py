"""Lister of class folders: `{train,val|validation,test}/CLASS/*`, or `CLASS/*` as training data."""

from pipeline.errors import UsageError
from pipeline.sources.base import Entry, Listing, is_image, note_left_out
from pipeline.sources.labelers.imagenet import MAPPING, read_mapping
from pipeline.storage.base import File, Store

_SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


def detect(store: Store) -> bool:
    """Whether it is a folder: any may hold class folders, and `list_samples` says what it lacks."""
    return store.is_folder()


def list_samples(store: Store) -> Listing:
    """List class folders: files with an image suffix, at any depth below a class folder.

    Hidden files are left out; files without an image suffix are left out and counted in `notes`.
    Classes get their names from `LOC_synset_mapping.txt` where the source has one.

    Raises:
        UsageError: Unreadable folders; both `val` and `validation`; a validation or test folder without a
            training folder.
    """
    notes: list[str] = []
    entries: dict[str, list[Entry]] = {}
    classes: set[str] = set()
    for split, folder in _split_folders(store).items():
        found, ids = read_class_folders(store, folder, notes)
        if not found and split != "train":
            notes.append(f"{split}: no class folders with images, left out")
            continue
        entries[split] = found
        classes |= ids
    names = read_mapping(store, MAPPING) if store.is_file(MAPPING) else {}
    return Listing("folders", entries, names=names, classes=tuple(sorted(classes)), notes=notes)


def read_class_folders(
    store: Store, folder: str, notes: list[str], loose: list[File] | None = None
) -> tuple[list[Entry], set[str]]:
    """Return the images in `folder/CLASS/…`, and the ids of all classes, including those without images.

    Args:
        store: The source.
        folder: Folder that holds the class folders, relative to the root; "" is the root.
        notes: Gets a line with the number of other files, if there are any.
        loose: Gets the images directly in `folder`; None leaves them out as other files.

    Raises:
        UsageError: A folder or file that cannot be read.
    """
    files, folders = store.walk(folder)
    start = len(folder) + 1 if folder else 0
    classes = {path[start:]: path[start:] for path in folders if "/" not in path[start:]}
    entries: list[Entry] = []
    others = 0
    while files:  # popping frees each file, so that a million files and entries are never held together
        file = files.pop()
        name, _, below = file.path[start:].partition("/")
        if below and is_image(below):
            entries.append(Entry(file.path, classes.setdefault(name, name), file.size))
        elif loose is not None and not below and is_image(name):
            loose.append(file)
        elif file.path != MAPPING:
            others += 1
    what = "image" if loose is not None else "image in a class folder"
    note_left_out(notes, store.url_of(folder) if folder else store.url, others, "file", what)
    return entries, set(classes)


def _split_folders(store: Store) -> dict[str, str]:
    """Return split → its folder; without split folders, the root ("") is the training split."""
    present = store.names()
    named = {
        name: split for name, split in _SPLIT_FOLDERS.items() if name in present and store.is_folder(name)
    }
    if not named:
        return {"train": ""}
    if "train" not in named:
        raise UsageError(
            f"source {store}: found the folders {', '.join(sorted(named))} but no train; "
            "name a source with train/CLASS/ folders"
        )
    if {"val", "validation"} <= named.keys():
        raise UsageError(f"source {store}: found both val and validation; keep one of them")
    return {split: name for name, split in named.items()}
