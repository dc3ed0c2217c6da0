import ctypes
import os
import platform
import subprocess
import sys

import psutil
import pytest

from pipeline import host
from pipeline.host import usable_cores

GLIBC = platform.libc_ver()[0] == "glibc"


def test_cores_are_those_of_the_affinity():
    allowed = os.sched_getaffinity(0)
    assert usable_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_elsewhere_it_is_the_machines_count(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert usable_cores() == 1


BLOCK, BLOCKS = 1024, 50_000


@pytest.mark.skipif(not GLIBC, reason="only glibc keeps freed memory so")
def test_freed_memory_goes_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    kept = blocks.pop()  # lies at the end of the heap, so that free alone cannot shrink it
    for block in blocks:
        libc.free(block)
    before = psutil.Process().memory_info().rss
    host.trim_heap()
    freed = before - psutil.Process().memory_info().rss
    libc.free(kept)
    assert freed > 0.9 * BLOCK * BLOCKS


def test_where_the_c_library_cannot_nothing_happens(monkeypatch):
    monkeypatch.setattr(host.ctypes, "CDLL", lambda _: object())
    host._of_glibc.cache_clear()
    try:
        assert not host.keep_freed_memory()
        host.trim_heap()
    finally:
        host._of_glibc.cache_clear()


# Count page faults while blocks of 40 MB are allocated, filled and freed one after the other.
FAULTS = """
import resource
from pipeline import host
print(host.keep_freed_memory())
for _ in range(3):  # warm-up
    bytearray(40 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    bytearray(40 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not GLIBC, reason="only glibc has mallopt")
@pytest.mark.parametrize(
    ("chosen", "kept"),
    [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False), ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, False)],
)
def test_kept_memory_is_used_again_without_page_faults(chosen, kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment | chosen, capture_output=True, text=True, check=True
    )
    keeps, faults = done.stdout.split()
    assert keeps == str(kept)
    huge_pages = 5 * (40 << 20) // (2 << 20)  # the fewest faults possible
    assert (int(faults) < huge_pages // 4) == kept
