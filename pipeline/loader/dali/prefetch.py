"""The segment after the one in use, made ready by a thread meanwhile."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from pipeline.loader.dali.segment import Segment


class Place(NamedTuple):
    """Which segment of an epoch, both counted from 0."""

    epoch: int
    number: int


class Ahead:
    """Holds one segment at most: the next, once it is begun."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alexnet-loader")
        self._next: tuple[Place, Future[Segment]] | None = None

    def build(self, place: Place, work: Callable[[Place], Segment]) -> None:
        """Let the thread build the segment at `place`."""
        self._next = place, self._thread.submit(work, place)

    def start(self) -> None:
        """Let its first batches begin, where it is built."""
        if self._next is not None and self._next[1].done() and self._next[1].exception() is None:
            self._next[1].result().start()

    def take(self, place: Place | None = None) -> Segment | None:
        """The segment at `place`, waited for; None, and what was built is let go, where it is another's.

        Raises:
            Exception: what the building raised.
        """
        held, self._next = self._next, None
        if held is None:
            return None
        if held[0] == place:
            return held[1].result()
        held[1].add_done_callback(_close_unused)
        return None

    def close(self) -> None:
        """Let go of what was built, and wait for what is being built."""
        self.take()
        self._thread.shutdown(cancel_futures=True)


def _close_unused(future: Future[Segment]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
