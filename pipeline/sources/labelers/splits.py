"""Split names ("train", "val", "test") in the names of folders, archives and files."""

import re

SPLITS = ("train", "val", "test")
"""The splits, in the order of a dataset."""

# Split → words in a file's or folder's name, as in the Hugging Face hub's
# https://huggingface.co/docs/hub/datasets-file-names-and-splits
_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_NO_LETTERS = re.compile(r"[^a-z]+")
# ImageNet's archives, and the folders that people unpack them to, carry the split behind these words.
_IMAGENET = re.compile(r"ilsvrc2012_img_(train|val|test)")
_IMAGENET_FILE = re.compile(r"ILSVRC2012_(val|test)_[0-9]{8}")


def split_named(folder: str) -> str | None:
    """Return the split that a folder is named after, in any case ("Training", "dev"), or None."""
    name = folder.casefold()
    imagenet = _IMAGENET.match(name)
    return imagenet[1] if imagenet else _SPLIT_OF.get(name)


def split_in(name: str) -> str | None:
    """Return the split whose word a file name contains, or None.

    Words are separated by anything but letters: `validation-00000-of-00014.parquet`, `imagenet-val-01.tar`.
    """
    return next((_SPLIT_OF[word] for word in _NO_LETTERS.split(name.lower()) if word in _SPLIT_OF), None)


def split_of_path(path: str) -> str:
    """Return the split that a file's name, or else the nearest of its folders, contains; else "train"."""
    found = (split_in(part) for part in reversed(path.split("/")))
    return next((split for split in found if split), "train")


def split_of_image(name: str) -> str | None:
    """Return the split of an image named like ImageNet's (`ILSVRC2012_val_00000001.JPEG`), or None."""
    found = _IMAGENET_FILE.match(name)
    return found[1] if found else None
