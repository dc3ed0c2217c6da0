"""Sources of few large files, as data hubs have them: which there are, their splits, and damage to them."""

import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import RunError, UsageError
from pipeline.sources.base import is_image
from pipeline.storage.base import Store

# The hub's own words: https://huggingface.co/docs/hub/datasets-file-names-and-splits
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_NO_LETTERS = re.compile(r"[^a-z]+")
# A tree of a million images need not be walked to see that it is one.
_MOST_FOLDERS = 32
_MOST_LOOKUPS = 64


def split_of(path: str) -> str:
    """Return "train", "val" or "test" by the words of a file's name, else of its folders; else "train".

    The words are those of the Hugging Face hub, between anything that is no letter:
    `data/validation-00000-of-00014.parquet`, `imagenet-val-000001.tar`, `default/test/0000.parquet`.
    """
    for part in reversed(path.lower().split("/")):
        for word in _NO_LETTERS.split(part):
            if word in _SPLITS:
                return _SPLITS[word]
    return "train"


def look_for(store: Store, is_wanted: Callable[[str], bool]) -> tuple[str | None, bool]:
    """Look for a kind of file in the root and the folders next to it, without walking large trees.

    Returns:
        The path of the first file whose name `is_wanted`, or None; and whether there are images in
        folders, as where a downloaded file lies beside what was extracted from it.
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
def reading(place: str, kind: str, *damage: type[Exception]) -> Iterator[None]:
    """Turn what the reading of a file raises into one line.

    Args:
        place: the file, for messages.
        kind: what it should be, such as "Parquet file".
        damage: raised where the bytes are not; an OSError without a number counts too.

    Raises:
        UsageError: missing or damaged.
        RunError: it cannot be read.
    """
    expected: tuple[type[Exception], ...] = (*damage, OSError)
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{place}: it does not exist any more; restore it") from error
    except expected as error:
        if isinstance(error, OSError) and error.errno:
            raise RunError(f"cannot read {place}: {error.strerror}; run the same command again") from error
        text = " ".join(str(error).split())
        raise UsageError(f"{place}: no complete {kind} ({text}); download it again") from error
