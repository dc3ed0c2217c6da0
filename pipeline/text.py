"""Text made fit to be shown: names of classes and files that others wrote, counts and sizes."""

import unicodedata

# The joiners of Persian, Indic scripts and emoji; invisible themselves, but part of names.
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    r"""Return a text with escapes for what would control a terminal or turn the text around.

    These are control characters, newlines, bidirectional overrides and other invisible characters, and lone
    surrogates, as in names of files that are not UTF-8: `\x1b`, `\n`, `\u202e`, `\udce9`. A text without any
    is returned as it is.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun, whose plural ends in s: `1 shard`, `1,000 shards`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_bytes(count: int) -> str:
    """Format a number of bytes with a decimal unit: 1.5 GB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _visible(letter: str) -> str:
    if letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode()
