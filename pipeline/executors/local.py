"""`LocalExecutor`: worker processes on this machine, each at the other end of a pipe.

The queues of `multiprocessing` and `concurrent.futures` would need semaphores, and thereby a /dev/shm that
can be written, which not every container has.
"""

import multiprocessing
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar

from pipeline.arguments import COUNT, check_record
from pipeline.errors import RunError
from pipeline.executors.base import NOT_REPORTED, Item, Result
from pipeline.executors.children import die_with_parent, sheltered_children
from pipeline.host import raise_open_files

_POLL_SECONDS = 0.2
_NOTHING_LEFT: Any = object()


@dataclass(frozen=True)
class LocalExecutor:
    """Runs tasks in a pool of spawned processes.

    A script that uses it must be guarded by `if __name__ == "__main__":`, since each worker imports it.

    Attributes:
        workers: number of processes, at least 1; no more are started than there are items.

    Raises:
        UsageError: `workers` is below 1.
    """

    workers: int = 1
    reports_progress: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_record(self, workers=COUNT)

    def run(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        on_progress: Callable[[int], None] = NOT_REPORTED,
    ) -> Generator[Result, None, None]:
        """See `Executor.run`."""
        waiting = iter(items)
        pool: dict[Connection, BaseProcess] = {}
        images: dict[Connection, int] = {}  # that each worker has processed so far
        try:
            for _ in range(min(self.workers, len(items))):
                pipe, process = _start_worker(work)
                pool[pipe] = process
                _send(pipe, next(waiting))
            busy = set(pool)
            while busy:
                for ready in wait(busy, _POLL_SECONDS):
                    assert isinstance(ready, Connection)
                    pipe, reply = ready, _receive(ready)
                    images[pipe] = reply.images
                    if reply.error is not None:
                        raise reply.error
                    if reply.finished:
                        if (item := next(waiting, _NOTHING_LEFT)) is _NOTHING_LEFT:
                            busy.remove(pipe)
                        else:
                            _send(pipe, item)
                        yield reply.result
                on_progress(sum(images.values()))
        finally:
            for pipe in pool:
                pipe.close()  # an idle worker ends now, any other after its task
            for process in pool.values():
                process.join()


@dataclass(frozen=True)
class _Reply:
    """A message of a worker.

    Attributes:
        images: Number of images that it has processed so far.
        finished: Whether its task is finished; otherwise there is neither a result nor an error.
        result: Result of the task.
        error: What the task raised, or None.
    """

    images: int
    finished: bool = False
    result: Any = None
    error: Exception | None = None


def _start_worker(work: Callable[[Any], Any]) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    with sheltered_children():
        process.start()
    theirs.close()
    return ours, process


def _send(pipe: Connection, item: Any) -> None:
    try:
        pipe.send(item)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise _worker_died() from error


def _receive(pipe: Connection) -> _Reply:
    try:
        reply: _Reply = pipe.recv()
    except (EOFError, ConnectionResetError) as error:
        raise _worker_died() from error
    return reply


def _worker_died() -> RunError:
    return RunError(
        "a worker process died (killed, or out of memory); what was finished is kept: "
        "run the same command again, with fewer --workers if memory is short"
    )


@dataclass
class _Counter:
    """Counts the images that this worker has processed, and tells its parent now and then."""

    pipe: Connection
    images: int = 0
    reported: float = 0.0  # time of the last report, seconds

    def add(self) -> None:
        self.images += 1
        if time.monotonic() - self.reported > _POLL_SECONDS:
            self.reported = time.monotonic()
            with suppress(OSError):  # the parent has given up: noticed after this task
                self.pipe.send(_Reply(self.images))


_counter: _Counter | None = None
"""The counter of this worker process; None in other processes."""


def count_image() -> None:
    """Count one image as processed; to be called by tasks. Does nothing outside a worker process."""
    if _counter is not None:
        _counter.add()


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """Work on one item after another, in a worker, until the parent closes the pipe."""
    global _counter
    _counter = _Counter(pipe)
    raise_open_files()
    threading.Thread(target=die_with_parent, daemon=True).start()
    try:
        while True:
            item = pipe.recv()
            pipe.send_bytes(_reply(work, item, _counter))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # there is no more work
        return


def _reply(work: Callable[[Any], Any], item: Any, counter: _Counter) -> bytes:
    """Return the message, pickled, with the result of a task, or with the error that it raised."""
    try:
        result = work(item)
        return bytes(ForkingPickler.dumps(_Reply(counter.images, finished=True, result=result)))
    except Exception as error:
        error.add_note(f"In a worker process:\n{traceback.format_exc()}")
        return bytes(ForkingPickler.dumps(_Reply(counter.images, finished=True, error=error)))
