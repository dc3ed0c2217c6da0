"""What this machine leaves to a process: processor cores and memory."""

import ctypes
import os
from functools import cache


def usable_cores() -> int:
    """Cores that the scheduler or container leaves to this process, at least 1.

    A machine's core count would start too many threads under taskset, Slurm or a container's CPU set.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Of glibc's malloc.h; its mallopt returns 1 where it did as told.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed from now on, so that a step's large tensors reuse the last step's pages.

    By default glibc gets every block of 32 MB or more from the system and gives it back when it is freed, and
    the system clears each page again at its first use: on two cores a quarter to three quarters of the time
    of AlexNet's updates and forward passes. Kept, memory peaks up to a half higher (docs/benchmarks.md).

    Returns:
        Whether it does. Elsewhere than under glibc nothing happens, nor where the environment has settings
        for malloc already (`MALLOC_...`, `GLIBC_TUNABLES`): these stand.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def trim_heap() -> None:
    """Give back what C code of this process has freed and glibc keeps; elsewhere do nothing.

    Threads of DALI allocate from arenas of their own, and every pipeline has new threads: over fifty small
    epochs what the arenas keep grew to 500 MB. Trimmed it does not grow, for 0.4 to 17 ms a pipeline (two
    cores, benchmarks/loader_soak.py).
    """
    if (malloc_trim := _of_glibc("malloc_trim")) is not None:
        malloc_trim(0)


@cache
def _of_glibc(name: str) -> "ctypes._FuncPointer | None":
    try:
        return getattr(ctypes.CDLL(None), name)  # type: ignore[no-any-return]
    except (AttributeError, OSError):  # musl, macOS
        return None
