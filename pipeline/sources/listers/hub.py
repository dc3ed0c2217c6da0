"""Shared by the Parquet and WebDataset listers: finding container files, their splits, and read errors."""

import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import RunError, UsageError
from pipeline.host import refuse_too_many_open_files
from pipeline.sources.base import is_image
from pipeline.storage.base import Store

# Split → words in a file's or folder's name, as in the Hugging Face hub's
# https://huggingface.co/docs/hub/datasets-file-names-and-splits
_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
_NO_LETTERS = re.compile(r"[^a-z]+")
# Limits of the search, so that detection does not walk a tree of a million images.
_MOST_FOLDERS = 32
_MOST_LOOKUPS = 64


def split_of(path: str) -> str:
    """Return the split ("train", "val" or "test") that a file's name, or else its folders' names, contain.

    The words are those of the Hugging Face hub, separated by anything but letters:
    `data/validation-00000-of-00014.parquet`, `imagenet-val-000001.tar`, `default/test/0000.parquet`.
    A path without such a word is training data.
    """
    for part in reversed(path.lower().split("/")):
        for word in _NO_LETTERS.split(part):
            if word in _SPLITS:
                return _SPLITS[word]
    return "train"


def look_for(store: Store, is_wanted: Callable[[str], bool]) -> tuple[str | None, bool]:
    """Search the root and the folders below it, breadth first, for a kind of file.

    It visits at most 32 folders, so that large trees are not walked.

    Args:
        store: The source.
        is_wanted: Whether a file of this name is searched for.

    Returns:
        The path of the first wanted file, or None; and whether there are images in folders, for example
        where a downloaded file lies beside the images extracted from it.
    """
    found: str | None = None
    images = False
    folders = deque([""])
    visited = lookups = 0
    while folders and visited < _MOST_FOLDERS:
        folder = folders.popleft()
        visited += 1
        # Names with a dot are rarely folders, so they come last.
        for name in sorted(store.names(folder), key=lambda name: ("." in name, name)):
            path = f"{folder}/{name}" if folder else name
            if name.startswith("."):
                continue
            if is_image(name):
                images = images or bool(folder)
            elif is_wanted(name) and (found or store.is_file(path)):
                found = found or path
            elif lookups < _MOST_LOOKUPS and len(folders) < _MOST_FOLDERS:
                lookups += 1
                if store.is_folder(path):
                    folders.append(path)
    return found, images


@contextmanager
def reading(url: str, kind: str, *damage: type[Exception]) -> Iterator[None]:
    """Context manager that turns errors of reading a file into a UsageError or RunError of one line.

    Args:
        url: Path or URL of the file, for messages.
        kind: Expected kind of the file, such as "Parquet file", for messages.
        damage: Exception types that mean the file is damaged. An OSError without an errno means so too.

    Raises:
        UsageError: The file is missing or damaged.
        RunError: The file cannot be read.
    """
    expected: tuple[type[Exception], ...] = (*damage, OSError)
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{url}: it does not exist any more; restore it") from error
    except expected as error:
        refuse_too_many_open_files(error)
        if isinstance(error, OSError) and error.errno:
            raise RunError(f"cannot read {url}: {error.strerror}; run the same command again") from error
        text = " ".join(str(error).split())
        raise UsageError(f"{url}: no complete {kind} ({text}); download it again") from error
