"""Limits of this process: CPU cores, open files, folders of imports; how malloc treats memory it frees."""

import ctypes
import errno
import math
import os
import resource
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipeline.errors import RunError

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
# The most that macOS accepts where the hard limit is "unlimited" (its OPEN_MAX).
_OPEN_MAX = 10240


def prepare_process() -> None:
    """Set up a command's process, once at its start; the processes that it starts inherit it.

    The soft limit of open files becomes the hard one, and Python processes do not import from the current
    folder, where a folder may be named like one of our packages.
    """
    raise_open_files()
    os.environ.setdefault("PYTHONSAFEPATH", "1")


def raise_open_files() -> None:
    """Raise this process's soft limit of open files to its hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, _OPEN_MAX):
        if soft not in (hard, resource.RLIM_INFINITY):
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return


def too_many_open_files(error: Exception) -> str | None:
    """Return what to say where an error's cause is that too many files are open, else None.

    The file that such an error names is not to blame. Libraries pass the cause on by its number or its words.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number not in (errno.EMFILE, errno.ENFILE) and os.strerror(errno.EMFILE) not in str(error):
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"too many open files: this process may have {limit:,}; raise the hard limit of its shell or "
        "container (ulimit -Hn; in Docker --ulimit nofile=65536)"
    )


def refuse_too_many_open_files(error: Exception) -> None:
    """Raise RunError if an error's cause is that too many files are open."""
    if message := too_many_open_files(error):
        raise RunError(message) from error


def refuse_without_semaphores() -> None:
    """Check that processes can share semaphores, as torch's launcher does.

    Raises:
        RunError: /dev/shm is missing, full or cannot be written.
    """
    import multiprocessing

    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        raise RunError(
            f"/dev/shm: {error.strerror}; several processes need semaphores there: make it writable "
            "(in Docker: --shm-size 1g), or use one process (--cpus 1, --gpus 1)"
        ) from error


def affinity() -> frozenset[int]:
    """Return the numbers of the CPU cores that this process may run on; all of the machine's but on Linux."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset(range(os.cpu_count() or 1))
    return frozenset(os.sched_getaffinity(0))


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, at least 1.

    On Linux these are the cores of its affinity, but no more than the CPU time that its cgroups allow: the
    machine's core count would start too many threads under taskset, Slurm or in a container.
    """
    return share_of_cores([affinity()])


def share_of_cores(affinities: Sequence[Collection[int]]) -> int:
    """Return this process's share of the CPU cores that several processes use, at least 1.

    Only processes whose affinities overlap share cores: Slurm and `torchrun --numa-binding` give each process
    cores of its own. All share the CPU time that their cgroups allow.

    Args:
        affinities: `affinity()` of each process on this host, this one included.
    """
    own = affinity()
    sharing = sum(not own.isdisjoint(other) for other in affinities)
    return max(
        1, min([len(own) // sharing, *(math.ceil(quota) // len(affinities) for quota in _cpu_quotas())])
    )


def _cpu_quotas() -> Iterator[float]:
    """Yield the limit of each cgroup that this process is in, in cores: CPU time per time.

    A line of /proc/self/cgroup has a cgroup's path below the root of its hierarchy. In a container the path
    may be the host's, of which only the root exists here: it is the container's own cgroup then.
    """
    with suppress(OSError):
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = _CGROUPS / "cpu" if controllers else _CGROUPS
            for folder in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
                if folder.is_relative_to(root):
                    yield from _cpu_quota(folder)


def _cpu_quota(cgroup: Path) -> Iterator[float]:
    """Yield the limit of one cgroup, if it has one."""
    with suppress(OSError, ValueError):
        if (file := cgroup / "cpu.max").exists():  # version 2; "max" means no limit
            quota, period = file.read_text().split()
        else:  # version 1; -1 means no limit
            quota, period = ((cgroup / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)


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
    pipelines the memory held by arenas grew to 500 MB. With trimming it does not grow; a call takes 0.4 to
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
