"""Build the next segment in a background thread while the current one is in use."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from pipeline.loader.dali.segment import Segment


class Place(NamedTuple):
    """Number of an epoch and of a segment in it, both counted from 0."""

    epoch: int
    number: int


class Ahead:
    """Prefetches at most one segment: the next."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alexnet-loader")
        self._next: tuple[Place, Future[Segment]] | None = None

    def build(self, place: Place, work: Callable[[Place], Segment]) -> None:
        """Build the segment at `place` in the background thread, by calling `work(place)`."""
        self._next = place, self._thread.submit(work, place)

    def start(self) -> None:
        """Start decoding the prefetched segment's first batches, if it is built."""
        if self._next is not None and self._next[1].done() and self._next[1].exception() is None:
            self._next[1].result().start()

    def take(self, place: Place | None = None) -> Segment | None:
        """Wait for the prefetched segment and return it, or close it and return None if it is not `place`'s.

        Raises:
            Exception: Whatever building the segment raised.
        """
        held, self._next = self._next, None
        if held is None:
            return None
        if held[0] == place:
            return held[1].result()
        held[1].add_done_callback(_close_unused)
        return None

    def close(self) -> None:
        """Close the prefetched segment, after waiting for it if it is being built."""
        self.take()
        self._thread.shutdown(cancel_futures=True)


def _close_unused(future: Future[Segment]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
