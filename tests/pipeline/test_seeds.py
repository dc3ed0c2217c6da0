import hashlib

from hypothesis import given, strategies as st

from pipeline.seeds import derive_seed


def test_seeds_never_change():
    # By definition: 31 bits of BLAKE2b over the arguments joined by slashes.
    assert (
        derive_seed(7, "noise", 3) == int(hashlib.blake2b(b"7/noise/3", digest_size=4).hexdigest(), 16) // 2
    )
    assert [derive_seed(0), derive_seed(0, "shuffle"), derive_seed(2012, "crop", 1)] == [
        436422930,
        1567325033,
        1585447099,
    ]


@given(st.integers(0, 2**63), st.text(), st.integers(0, 1000))
def test_seeds_fit_a_signed_32_bit_integer(seed, purpose, rank):
    assert 0 <= derive_seed(seed, purpose, rank) < 2**31


def test_purposes_and_ranks_get_seeds_of_their_own():
    seeds = {derive_seed(s, p, r) for s in range(10) for p in ("crop", "flip") for r in range(50)}
    assert len(seeds) == 1000
