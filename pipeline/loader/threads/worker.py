"""Worker processes: pools of threads elsewhere, which fill buffers that they share with this process.

One process stops scaling at some 8 threads, because they hand over the interpreter's lock. A worker is at the
other end of a pipe: it is sent the calls of a `Pool`'s methods, and answers plans in their order.
"""

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from queue import SimpleQueue
from typing import Any

from pipeline.errors import RunError, ToolkitError
from pipeline.executors.children import die_with_parent, sheltered_children
from pipeline.host import raise_open_files
from pipeline.loader.backend import Plan
from pipeline.loader.live_shards import SampleError
from pipeline.loader.order import Use
from pipeline.loader.ring import Layout, Ring, Slot
from pipeline.loader.threads.pool import Pool, Rows, Tasks, joined

_SECONDS_TO_END = 5.0


class WorkerPool:
    """A `Pool` in a process of its own. It is for one thread, and its methods are those of `Pool`."""

    def __init__(self, make: Callable[[], Pool], ring: Ring) -> None:
        """Start the process.

        A script that uses it must be guarded by `if __name__ == "__main__":`, since the process imports it.

        Args:
            make: Makes the pool there.
            ring: Buffers that it fills, in a file.
        """
        assert ring.file is not None
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, ring.layout), daemon=True)
        with sheltered_children():
            self._process.start()
        theirs.close()
        send_handle(self._pipe, ring.file, self._process.pid)
        self._asked: deque[Future[Any]] = deque()
        self._died = False
        self._reader = threading.Thread(target=self._read, name="alexnet-worker", daemon=True)
        self._reader.start()

    def begin(self, uses: Sequence[Use]) -> None:
        """Start an epoch that needs these shards, in the order of first use."""
        self._send("begin", uses)

    def submit(self, plan: Plan, slot: Slot, first: int) -> Tasks:
        """Start to make rows of a batch."""
        return [self._ask("submit", plan, slot.number, first)]

    def done(self, number: int) -> None:
        """Give up the shards that no batch after `number` needs."""
        self._send("done", number)

    def drop(self) -> None:
        """Forget all rows that are under way, after waiting for what has begun, and give up the shards."""
        self._ask("drop").exception()

    def close(self) -> None:
        """End the process."""
        self._send("close")
        self._process.join(_SECONDS_TO_END)
        self._process.kill()  # it may be fetching a shard
        self._process.join()
        self._reader.join()
        self._pipe.close()

    def _ask(self, method: str, *arguments: object) -> "Future[Any]":
        answer: Future[Any] = Future()
        self._asked.append(answer)
        self._send(method, *arguments)
        if self._died:
            self._fail()
        return answer

    def _send(self, method: str, *arguments: object) -> None:
        with suppress(OSError):  # it died, and `_read` says so
            self._pipe.send((method, arguments))

    def _read(self) -> None:
        """Pass on the answers, in a thread, until the process ends."""
        with suppress(EOFError, OSError):
            while True:
                answer = self._pipe.recv()
                asked = self._asked.popleft()
                if isinstance(answer, Exception):
                    asked.set_exception(answer)
                else:
                    asked.set_result(answer)
        self._died = True
        self._fail()

    def _fail(self) -> None:
        with suppress(IndexError):
            while True:
                self._asked.popleft().set_exception(
                    RunError(
                        "a worker process of the loader died: killed, out of memory, or started by a script "
                        'without `if __name__ == "__main__":`; run again, with fewer workers or smaller '
                        "batches if memory is short"
                    )
                )


def _serve(pipe: Connection, make: Callable[[], Pool], layout: Layout) -> None:
    """Do what the parent asks, in the worker, until it says "close" or is gone."""
    raise_open_files()
    threading.Thread(target=die_with_parent, daemon=True).start()
    file, pool = recv_handle(pipe), make()
    slots: dict[int, Slot] = {}
    begun: SimpleQueue[Tasks] = SimpleQueue()
    answering = threading.Thread(target=_answer, args=(pipe, begun), daemon=True)
    answering.start()
    with suppress(EOFError):
        while True:
            method, arguments = pipe.recv()
            match method:
                case "submit":
                    plan, number, first = arguments
                    if number not in slots:
                        slots[number] = Slot(number, layout.map(file, number))
                    begun.put(pool.submit(plan, slots[number], first))
                case "drop":
                    pool.drop()
                    begun.put([])
                case "close":
                    break
                case _:
                    getattr(pool, method)(*arguments)
    pool.close()


def _answer(pipe: Connection, begun: "SimpleQueue[Tasks]") -> None:
    """Send what becomes known of the rows, in the order in which they were asked for, in a thread."""
    with suppress(OSError):  # the parent is gone
        while True:
            tasks = begun.get()
            answer: Rows | Exception
            try:
                answer = joined([task.result() for task in tasks])
            except (CancelledError, SampleError, ToolkitError) as error:
                answer = error
            except Exception as error:
                answer = RunError(f"a worker process of the loader failed: {type(error).__name__}: {error}")
            pipe.send(answer)
