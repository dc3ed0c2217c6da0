"""What the processes that a library call starts inherit from this one, and when they end."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SAFE_PATH = "PYTHONSAFEPATH"


@contextmanager
def sheltered_children() -> Iterator[None]:
    """Within the block, start processes that Ctrl-C does not reach and that ignore the current folder.

    Ctrl-C goes to every process of a terminal, and one that is still importing would end with a traceback.
    So SIGINT is blocked in this thread, which its children inherit: whoever starts them ends them. This
    process handles a SIGINT that comes meanwhile at the end of the block, or in another thread's stead.

    A Python process begins with modules of the current folder, where `logging.py` or a folder `pipeline/`
    may lie, until it has the import path of its parent. PYTHONSAFEPATH keeps it from that.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def die_with_parent() -> None:
    """End this worker process when its parent is killed, because it would work on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
