"""`LocalExecutor`: a pool of worker processes on this machine."""

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
from pipeline.executors.base import NOT_REPORTED, Item, Result

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class LocalExecutor:
    """Runs tasks in a pool of spawned processes.

    A script that uses it must be guarded by `if __name__ == "__main__":`, since each worker imports it.

    Attributes:
        workers: number of processes; no more are started than there are items.
    """

    workers: int = 1
    reports_progress: ClassVar[bool] = True

    def run(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        on_progress: Callable[[int], None] = NOT_REPORTED,
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


# Images processed by all workers; set in each worker process and read by the parent.
_counter: "Synchronized[int] | None" = None


def count_image() -> None:
    """Count one image as processed; to be called by tasks. Does nothing outside a worker process."""
    if _counter is not None:
        with _counter.get_lock():
            _counter.value += 1


def _start_worker(counter: "Synchronized[int]") -> None:
    global _counter
    _counter = counter
    # Ctrl-C reaches every process of the group; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent is killed, because it would wait for tasks forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
