"""Keys of samples: the source file's name, made safe for tars and unique in the dataset."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable

from pipeline.sources.labelers.wnids import plain_name

# USTAR allows 100 bytes for a member's name; the key leaves room for its extension.
_LONGEST_KEY = 80
_SAFE = re.compile(rb"[A-Za-z0-9_+=@~-]{1,%d}" % _LONGEST_KEY)


def unique_keys(images: Iterable[tuple[int, str, str]]) -> tuple[list[str], int]:
    """Return one key for each image: the file's stem, escaped, with the class in front where stems collide.

    A WNID at the end of a stem that only repeats the class is no part of the key.

    Keys that still collide get a number behind them. The numbers follow the order of class, file name, split
    and path, not the order of `images`; the path comes last because it differs between layouts.

    Args:
        images: Split number (0 is training), path and class id of each image.

    Returns:
        The keys in the order of `images`, and the number of images whose stem collides.
    """
    listed = [(split, plain_name(path, class_id), class_id) for split, path, class_id in images]
    keys = [_safe(stem_of(path)) for _, path, _ in listed]
    uses = Counter(keys)
    if len(uses) == len(keys):
        return keys, 0
    used = {stem for stem, count in uses.items() if count == 1}
    colliding = [number for number, stem in enumerate(keys) if uses[stem] > 1]

    def name_of(number: int) -> tuple[str, str, int, str]:
        split, path, class_id = listed[number]
        return class_id, path.rpartition("/")[2], split, path

    for number in sorted(colliding, key=name_of):
        _, path, class_id = listed[number]
        key = base = _safe(f"{class_id}-{stem_of(path)}")
        again = 2
        while key in used:
            key, again = f"{base}-{again}", again + 1
        used.add(key)
        keys[number] = key
    return keys, len(colliding)


def stem_of(path: str) -> str:
    """Return the last part of a path without its suffix, as `pathlib.PurePath.stem` does."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def _safe(stem: str) -> str:
    """Keep letters, digits and -_+=@~; escape other bytes as %XX; shorten a stem too long for USTAR.

    A dot would end a WebDataset key, and white space would split a line of a DALI index.
    """
    raw = os.fsencode(stem)
    if _SAFE.fullmatch(raw):
        return stem
    safe = re.sub(rb"[^A-Za-z0-9_+=@~-]", lambda m: b"%%%02X" % m.group()[0], raw).decode()
    if len(safe) > _LONGEST_KEY:
        safe = f"{safe[:60]}~{hashlib.sha256(raw).hexdigest()[:16]}"
    return safe or "_"
