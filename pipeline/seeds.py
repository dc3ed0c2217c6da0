"""Derive an independent seed for each purpose from the user's seed."""

import hashlib


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
