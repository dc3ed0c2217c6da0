import ctypes
import os
import platform
import resource
import subprocess
import sys

import psutil
import pytest
from click.testing import CliRunner
from helpers.folders import place

from cli.prep import main
from pipeline import host
from pipeline.host import share_of_cores, usable_cores

GLIBC = platform.libc_ver()[0] == "glibc"


def test_cores_are_those_of_the_affinity():
    allowed = os.sched_getaffinity(0)
    assert usable_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


# The cgroups of a process, files below the folder of cgroups, and how many of 64 cores they allow.
QUOTAS = {
    "none": ("0::/", {"cpu.max": "max 100000"}, 64),
    "version 2": ("0::/", {"cpu.max": "150000 100000"}, 2),
    "of a parent": ("0::/job/step", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),
    "less than a core": ("0::/", {"cpu.max": "5000 100000"}, 1),
    "version 1": (
        "4:cpu,cpuacct:/docker/a7\n2:memory:/",
        {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "50000", "cpu.max": "100000 100000"},
        4,
    ),
    "version 1 without": (
        "4:cpu:/",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        64,
    ),
    "unreadable": ("0::/", {"cpu.max": "much"}, 64),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_a_containers_quota_of_cpu_time_limits_the_cores(name, tmp_path, monkeypatch):
    cgroups, files, cores = QUOTAS[name]
    for file, content in files.items():
        place(tmp_path / "fs" / file, f"{content}\n".encode())
    monkeypatch.setattr(host, "_OWN_CGROUPS", place(tmp_path / "cgroup", f"{cgroups}\n".encode()))
    monkeypatch.setattr(host, "_CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("own", "others", "quota", "cores"),
    [
        (range(8), [range(8 * k, 8 * k + 8) for k in range(1, 8)], None, 8),  # each has cores of its own
        (range(64), [range(64)] * 7, None, 8),
        (range(8), [range(8), range(8, 16), range(8, 16)], None, 4),
        (range(2), [range(2)] * 7, None, 1),
        (range(8), [range(8 * k, 8 * k + 8) for k in range(1, 8)], "1600000 100000", 2),  # of the container
    ],
)
def test_only_processes_that_may_run_on_the_same_cores_share_them(
    own, others, quota, cores, tmp_path, monkeypatch
):
    monkeypatch.setattr(host, "_OWN_CGROUPS", place(tmp_path / "cgroup", b"0::/\n"))
    monkeypatch.setattr(host, "_CGROUPS", tmp_path)
    place(tmp_path / "cpu.max", (quota or "max 100000").encode())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: own)
    assert share_of_cores([own, *others]) == cores


@pytest.mark.parametrize(("hard", "raised"), [(4096, 4096), (resource.RLIM_INFINITY, 10240)])
def test_a_command_may_open_as_many_files_as_the_system_lets_it(hard, raised, monkeypatch):
    """macOS has no hard limit, but refuses a soft one above 10240."""
    limits = [(256, hard)]

    def set_limits(_, new):
        if new[0] == resource.RLIM_INFINITY:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(new)

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[0])
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    CliRunner().invoke(main, ["info", "nowhere"])
    assert limits[1:] == [(raised, hard)]


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
