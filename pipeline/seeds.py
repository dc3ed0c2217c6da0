"""Derive independent random numbers for each purpose from the user's seed."""

import hashlib
from enum import IntEnum

import numpy as np


def derive_seed(seed: int, *purpose: object) -> int:
    """Derive the seed of one purpose, such as `derive_seed(seed, "shuffle", epoch)`.

    The seed is 31 bits of BLAKE2b over the arguments, so it is the same for every library version and
    machine.

    Args:
        seed: the user's seed.
        purpose: values that name the purpose; they are joined by "/" as strings.

    Returns:
        A seed in [0, 2**31).
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


class Purpose(IntEnum):
    """What the random numbers of an epoch are for; the numbers are part of every epoch's order."""

    SHARDS = 0
    START = 1
    SAMPLES = 2
    AUGMENTATION = 3
    TRANSFORM = 4


def random_generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """Return a counter-based generator (Philox) for one purpose and key.

    The key is a `spawn_key` of NumPy's SeedSequence, which keeps (1,) and (1, 0) apart: bare lists of words
    that end in zeros would collide.

    Args:
        seed: The user's seed, at least 0.
        purpose: What the numbers are for.
        key: Numbers such as epoch and batch, at least 0 each.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(int(purpose), *key))
    return np.random.Generator(np.random.Philox(sequence))
