"""Choose a part of a source's images, class by class and by a seed."""

import hashlib
from collections.abc import Callable

from pipeline.errors import UsageError
from pipeline.sources.base import Sample


def shuffle_key(seed: int, purpose: str, key: str) -> bytes:
    """Return a 16-byte sort key; sorting samples by it shuffles them by `seed` and `purpose`.

    It is a hash, not a random generator's stream: the same in every library version, and adding or removing
    an image does not change the order of the others.
    """
    return hashlib.blake2b(f"{seed}/{purpose}/{key}".encode(), digest_size=16).digest()


def split_off(samples: list[Sample], fraction: float, seed: int) -> dict[str, list[Sample]]:
    """Move `fraction` of each class's images (rounded) to "val"; each class keeps at least one in "train".

    Raises:
        UsageError: No image would be moved.
    """
    chosen = _chosen(samples, seed, "val-fraction", lambda count: min(round(count * fraction), count - 1))
    if not chosen:
        raise UsageError(
            f"--val-fraction {fraction:g} of these {len(samples)} images leaves none for validation; raise it"
        )
    return {
        "train": [s for s in samples if s.key not in chosen],
        "val": [s for s in samples if s.key in chosen],
    }


def part_of_each_class(
    samples: list[Sample], fraction: float | None, most: int | None, seed: int
) -> list[Sample]:
    """Keep a share of each class's images (rounded, at least one), and at most `most` of them.

    The images that a smaller share keeps are among those of a larger one.
    """

    def number(count: int) -> int:
        kept = count if fraction is None else max(1, round(count * fraction))
        return kept if most is None else min(kept, most)

    chosen = _chosen(samples, seed, "part", number)
    return [sample for sample in samples if sample.key in chosen]


def _chosen(samples: list[Sample], seed: int, purpose: str, number: Callable[[int], int]) -> set[str]:
    """Return the keys of the first `number(count)` of each class's images, in an order by the seed."""
    by_class: dict[int, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    return {
        sample.key
        for members in by_class.values()
        for sample in sorted(members, key=lambda s: shuffle_key(seed, purpose, s.key))[: number(len(members))]
    }
