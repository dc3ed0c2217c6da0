"""Ctrl-C in a command."""

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# Until the code has returned in which Python could not raise the interrupt.
_AGAIN_SECONDS = 0.05


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt within the block, also where it comes within a finalizer.

    Python drops an exception that is raised in a finalizer or in a callback from C, and would go on.
    """
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook

    def raise_later(dropped: "UnraisableHookArgs") -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main).start()
        else:
            hook(dropped)

    ours = before is signal.SIG_DFL  # as `cli.entry` sets it
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = raise_later
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def keeping(describe: Callable[[], str]) -> Iterator[None]:
    """Say at Ctrl-C within the block what was kept of the work, and how to go on.

    Args:
        describe: Returns a clause such as "run the same command again to continue", or "" if nothing is kept.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(describe()) from None
