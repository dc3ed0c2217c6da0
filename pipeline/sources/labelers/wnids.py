"""WordNet ids (WNIDs), ImageNet's names of classes, in the names of files."""

import re

WNID = re.compile(r"n[0-9]{8}")
"""A WordNet id, such as n01440764."""
_BEHIND = re.compile(r"_(n[0-9]{8})(?=\.[^.]*$|$)")
_IN_FRONT = re.compile(r"(n[0-9]{8})_")


def wnid_in(name: str) -> str | None:
    """Return the WNID in an image's file name: at the end of its stem, or before its first _.

    The Hugging Face hub's ImageNet has `n01440764_10026_n01440764.JPEG` and
    `ILSVRC2012_val_00000293_n01440764.JPEG`; ImageNet's own training images are named `n01440764_10026.JPEG`.
    """
    match = _BEHIND.search(name) or _IN_FRONT.match(name)
    return match[1] if match else None


def plain_name(name: str, wnid: str) -> str:
    """Return a file name without `_WNID` at the end of its stem, where that is the image's class."""
    if wnid not in name:
        return name
    match = _BEHIND.search(name)
    return name[: match.start()] + name[match.end() :] if match and match[1] == wnid else name
