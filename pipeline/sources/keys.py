"""Keys of samples: the source file's name, made safe for tars and unique in the dataset."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence

from pipeline.sources.base import Image
from pipeline.sources.labelers.wnids import plain_name

# USTAR allows 100 bytes for a member's name; the key leaves room for its extension.
_LONGEST_KEY = 80
_SAFE = re.compile(rf"[A-Za-z0-9_+=@~-]{{1,{_LONGEST_KEY}}}")


def unique_keys(splits: Sequence[Sequence[Image]]) -> tuple[list[str], int]:
    """Return one key for each image: the file's stem, escaped, with the class in front where stems collide.

    A WNID at the end of a stem that only repeats the class is no part of the key.

    Keys that still collide get a number behind them. The numbers follow the order of class, file name, split
    and path, not the order of the images; the path comes last because it differs between layouts.

    Args:
        splits: The images of each split, training first; their labels are ids of classes.

    Returns:
        The keys in the order of the images, split after split, and the number of images whose stem collides.
    """
    keys = [_safe(_plain_stem(image)) for images in splits for image in images]
    uses = Counter(keys)
    if len(uses) == len(keys):
        return keys, 0
    used = {stem for stem, count in uses.items() if count == 1}
    listed = ((split, image) for split, images in enumerate(splits) for image in images)
    colliding = [
        (str(image.label), plain_name(image.path.rpartition("/")[2], str(image.label)), split, image, number)
        for number, (split, image) in enumerate(listed)
        if uses[keys[number]] > 1
    ]
    colliding.sort(key=lambda found: (*found[:3], found[3].path))
    for class_id, _, _, image, number in colliding:
        key = base = _safe(f"{class_id}-{_plain_stem(image)}")
        again = 2
        while key in used:
            key, again = f"{base}-{again}", again + 1
        used.add(key)
        keys[number] = key
    return keys, len(colliding)


def _plain_stem(image: Image) -> str:
    return stem_of(plain_name(image.path.rpartition("/")[2], str(image.label)))


def stem_of(path: str) -> str:
    """Return the last part of a path without its suffix, as `pathlib.PurePath.stem` does."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def _safe(stem: str) -> str:
    """Keep letters, digits and -_+=@~; escape other bytes as %XX; shorten a stem too long for USTAR.

    A dot would end a WebDataset key, and white space would split a line of a DALI index.
    """
    if _SAFE.fullmatch(stem):
        return stem
    raw = os.fsencode(stem)
    safe = re.sub(rb"[^A-Za-z0-9_+=@~-]", lambda m: b"%%%02X" % m.group()[0], raw).decode()
    if len(safe) > _LONGEST_KEY:
        safe = f"{safe[:60]}~{hashlib.sha256(raw).hexdigest()[:16]}"
    return safe or "_"
