"""How many processor cores this process may use."""

import os


def usable_cores() -> int:
    """Cores that the scheduler or container leaves to this process, at least 1.

    A machine's core count would start too many threads under taskset, Slurm or a container's CPU set.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
