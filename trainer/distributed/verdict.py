"""What ended a run for good: told to all of its processes, and to those that are started anew."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from pipeline.errors import RunError, ToolkitError, UsageError
from trainer.distributed.env import World

FILE = "ALEXNET_VERDICT"
"""Environment variable with the file in which a launcher's workers find it."""

_CAUSE, _KNOWN = "alexnet-verdict/cause", "alexnet-verdict/known"
# Processes look once a second (`trainer.distributed.failures`).
_TELL_SECONDS = 4.0
_POLL_SECONDS = 0.1


class LostPeerError(RunError):
    """Another process is gone: no cause of its own, and no reason not to start again."""


def note(error: ToolkitError) -> None:
    """Keep it for processes that a launcher on this host would start anew: they would only meet it again."""
    if FILE in os.environ:
        Path(os.environ[FILE]).write_text(to_text(error))


def noted() -> ToolkitError | RuntimeError | None:
    """What `note` kept, or None."""
    if FILE not in os.environ or not Path(os.environ[FILE]).exists():
        return None
    text = Path(os.environ[FILE]).read_text()
    return from_text(text) or RuntimeError(text)


def tell(error: ToolkitError, world: World) -> None:
    """Tell the other processes why this one ends, and wait a moment until they know.

    Else they would know no more than that it is gone; and the first process holds what they ask.
    """
    if world.size > 1 and not isinstance(error, LostPeerError):
        within(_TELL_SECONDS, lambda: _tell(error, world.size))


def told(store: Any) -> ToolkitError | None:
    """What another process told, by a connection to the processes' store; None where none has.

    Raises:
        RuntimeError: the store is gone (`torch.distributed.DistError` is one).
    """
    if not store.check([_CAUSE]):
        return None
    store.add(_KNOWN, 1)
    return from_text(store.get(_CAUSE).decode())


def raise_together(work: Callable[[], None], world: World) -> None:
    """Do some work in every process, and wait until all have done theirs.

    Raises:
        ToolkitError: in every process, what the first that failed raised.
    """
    found = ""
    try:
        work()
    except ToolkitError as error:
        found = to_text(error)
    everyone = [found]
    if world.size > 1:
        everyone = [""] * world.size
        dist.all_gather_object(everyone, found)
    if failed := next(filter(None, everyone), ""):
        raise from_text(failed) or ToolkitError(failed)


def to_text(error: ToolkitError) -> str:
    """`Name: message`, as torch's launcher writes exceptions."""
    return f"{type(error).__name__}: {error}"


def from_text(text: str) -> ToolkitError | None:
    """The toolkit's error that `Name: message` describes; None if it is none of them."""
    kind, _, message = text.partition(": ")
    known = (UsageError, RunError, LostPeerError)
    return next((error(message) for error in known if kind == error.__name__), None)


def within(seconds: float, work: Callable[[], None]) -> bool:
    """Whether some work on the store ends in time and well: a stopped server leaves its clients waiting."""
    done = threading.Event()

    def run() -> None:
        with suppress(RuntimeError, dist.DistError):
            work()
            done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return done.is_set()


def _tell(error: ToolkitError, processes: int) -> None:
    # A connection of its own: the process group's is held while a collective waits.
    store = _get_default_store().clone()  # type: ignore[attr-defined]
    store.compare_set(_CAUSE, "", to_text(error))  # the first cause is everybody's
    store.add(_KNOWN, 1)
    while store.add(_KNOWN, 0) < processes:
        time.sleep(_POLL_SECONDS)
