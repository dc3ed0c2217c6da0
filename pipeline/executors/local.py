"""A pool of processes on this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from typing import ClassVar

from pipeline.errors import RunError
from pipeline.executors.base import Item, OnProgress, Result

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class LocalExecutor:
    """A pool of new interpreters on this machine.

    A script that uses it needs `if __name__ == "__main__":`.
    """

    workers: int = 1
    reports_progress: ClassVar[bool] = True

    def run(
        self, work: Callable[[Item], Result], items: Sequence[Item], on_progress: OnProgress | None = None
    ) -> Generator[Result, None, None]:
        """See `Executor.run`."""
        if not items:
            return
        context = multiprocessing.get_context("spawn")
        counter: Synchronized[int] = context.Value("q", 0)
        pool = ProcessPoolExecutor(
            min(self.workers, len(items)), context, initializer=_start_worker, initargs=(counter,)
        )
        try:
            pending: set[Future[Result]] = {pool.submit(work, item) for item in items}
            while pending:
                finished, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
                if on_progress:
                    on_progress(counter.value)
                for future in finished:
                    yield future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process died (killed, or out of memory); what was finished is kept: "
                "run the same command again, with fewer --workers if memory is short"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# Set in each worker process; shared with the parent, which shows it as progress.
_counter: "Synchronized[int] | None" = None


def count_image() -> None:
    """In a task: tell the engine that one more image has been handled."""
    if _counter is not None:
        with _counter.get_lock():
            _counter.value += 1


def _start_worker(counter: "Synchronized[int]") -> None:
    global _counter
    _counter = counter
    # Ctrl-C reaches the whole group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent is killed: it would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
