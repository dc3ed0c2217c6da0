"""How functions report the progress of long work to their callers."""

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Called with (done, total), counted in images unless the function that takes it says otherwise."""


def no_progress(done: int, total: int) -> None:
    """Ignore progress; the default of functions that report it."""


def counted(on_progress: OnProgress, total: int, before: int = 0) -> Callable[[int], None]:
    """Return a callback of the number done in this run, as `Executor.run` takes it.

    Args:
        on_progress: Called with (`before` + number done, `total`).
        total: Number in all.
        before: Number that an earlier run has done.
    """
    return lambda done: on_progress(before + done, total)
