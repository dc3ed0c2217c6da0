"""Independent seeds for each purpose, all from the one that the user gives."""

import hashlib


def derive_seed(seed: int, *purpose: object) -> int:
    """A 31-bit seed for `purpose`; the same for every library version and machine."""
    text = "/".join(str(part) for part in (seed, *purpose))
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
