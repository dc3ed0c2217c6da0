import ctypes
import platform

import psutil
import pytest

from pipeline import heap

BLOCK, BLOCKS = 1024, 200_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory so")
def test_freed_memory_goes_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    kept = blocks.pop()  # at the heap's end, so that nothing before it is given back by free alone
    for block in blocks:
        libc.free(block)
    before = psutil.Process().memory_info().rss
    heap.trim()
    freed = before - psutil.Process().memory_info().rss
    libc.free(kept)
    assert freed > 0.9 * BLOCK * BLOCKS


def test_where_the_c_library_cannot_nothing_happens(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: object())
    heap._malloc_trim.cache_clear()
    try:
        assert heap._malloc_trim() is None
        heap.trim()
    finally:
        heap._malloc_trim.cache_clear()
