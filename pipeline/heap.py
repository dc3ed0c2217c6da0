"""Memory that was freed, given back to the system."""

import ctypes
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Give back what C code of this process has freed and glibc keeps; elsewhere do nothing.

    Threads of DALI allocate from arenas of their own, and every pipeline has new threads: over fifty small
    epochs what the arenas keep grew to 500 MB. Trimmed it does not grow, for 0.4 to 17 ms a pipeline (two
    cores, benchmarks/loader_soak.py).
    """
    if (malloc_trim := _malloc_trim()) is not None:
        malloc_trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        function: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # musl, macOS
        return None
    return function
