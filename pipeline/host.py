"""CPU cores that a process may use, and how malloc treats memory that it frees."""

import ctypes
import os
from functools import cache


def usable_cores() -> int:
    """Return the number of CPU cores that this process may run on, at least 1.

    On Linux this is the process's CPU affinity. The machine's core count, which is returned elsewhere, would
    start too many threads under taskset, Slurm or a container's CPU set.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# From glibc's malloc.h. mallopt returns 1 on success.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Make malloc keep memory that is freed from now on, so that each step's large tensors reuse its pages.

    By default glibc maps every block of 32 MB or more anew and unmaps it when it is freed, and the kernel
    zeroes each page again at its first use. On two cores this took a quarter to a half of the time of
    AlexNet's steps. Keeping the memory raised a run's peak from 2.3 to 2.7 GB (docs/benchmarks.md).

    Returns:
        Whether malloc now keeps freed memory. False, and nothing is changed, without glibc or where the
        environment sets malloc's options itself (`MALLOC_...`, `GLIBC_TUNABLES`).
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def trim_heap() -> None:
    """Return memory that C code has freed but glibc still holds to the system; without glibc do nothing.

    DALI's threads allocate from arenas of their own, and every DALI pipeline starts new threads: over fifty
    small epochs the memory held by arenas grew to 500 MB. With trimming it does not grow; a call takes 0.4 to
    17 ms per pipeline (two cores, benchmarks/loader_soak.py).
    """
    if (malloc_trim := _of_glibc("malloc_trim")) is not None:
        malloc_trim(0)


@cache
def _of_glibc(name: str) -> "ctypes._FuncPointer | None":
    """Return a function of the C library, or None if it lacks one of this name."""
    try:
        return getattr(ctypes.CDLL(None), name)  # type: ignore[no-any-return]
    except (AttributeError, OSError):  # musl, macOS
        return None
