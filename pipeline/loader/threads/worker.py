"""Worker processes: pools of threads elsewhere, which fill buffers that they share with this process.

One process stops scaling at some 8 threads, because they hand over the interpreter's lock. A worker is at the
other end of a pipe: it is sent the calls of a `Pool`'s methods, and answers plans in their order.
"""

import multiprocessing
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
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
from pipeline.loader.threads.pool import Pool, Tasks, joined

_SECONDS_TO_END = 1.0


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
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, make, ring.layout), daemon=True)
        with sheltered_children():
            process.start()
        theirs.close()
        with suppress(OSError):  # it died already, which `_Link` finds out
            send_handle(pipe, ring.file.fileno(), process.pid)
        self._link = _Link(pipe, process)
        self._end = weakref.finalize(self, self._link.end)

    def begin(self, uses: Sequence[Use]) -> None:
        """Start an epoch that needs these shards, in the order of first use."""
        self._link.ask("begin", uses)

    def submit(self, plan: Plan, slot: Slot, first: int) -> Tasks:
        """Start to make rows of a batch."""
        return [self._link.ask("submit", plan, slot.number, first)]

    def done(self, number: int) -> None:
        """Give up the shards that no batch after `number` needs."""
        self._link.ask("done", number)

    def drop(self) -> None:
        """Forget all rows that are under way, after waiting for what has begun, and give up the shards."""
        self._link.ask("drop").exception()

    def close(self) -> None:
        """End the process."""
        self._end()


class _Link:
    """Talks to a worker in threads of its own: a signal may end the main thread within a message."""

    def __init__(self, pipe: Connection, process: BaseProcess) -> None:
        self._pipe, self.process = pipe, process
        self._numbers, self._asked = count(), dict[int, Future[Any]]()
        self._outgoing: SimpleQueue[tuple[int, str, tuple[object, ...]]] = SimpleQueue()
        self._died = False
        self._threads = [
            threading.Thread(target=target, name="alexnet-worker", daemon=True)
            for target in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, method: str, *arguments: object) -> "Future[Any]":
        """Have the worker call a method of its pool; return the future of its answer."""
        answer: Future[Any] = Future()
        number = next(self._numbers)
        self._asked[number] = answer
        self._outgoing.put((number, method, arguments))
        if self._died:
            self._fail()
        return answer

    def end(self) -> None:
        """End the worker, at the latest after a second: it may be fetching a shard."""
        self.ask("close")
        self.process.join(_SECONDS_TO_END)
        self.process.kill()
        self.process.join()
        for thread in self._threads:
            if thread is not threading.current_thread():  # which may collect the garbage
                thread.join()
        self._pipe.close()

    def _write(self) -> None:
        with suppress(OSError):  # it died, and `_read` says so
            method = ""
            while method != "close":
                number, method, arguments = self._outgoing.get()
                self._pipe.send((number, method, arguments))

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                number, answer = self._pipe.recv()
                asked = self._asked.pop(number)
                if isinstance(answer, BaseException):
                    asked.set_exception(answer)
                else:
                    asked.set_result(answer)
        self.process.join(_SECONDS_TO_END)
        self._died = True
        self._fail()

    def _fail(self) -> None:
        while self._asked:
            with suppress(KeyError):
                _, asked = self._asked.popitem()
                asked.set_exception(
                    RunError(
                        f"a worker process of the loader died (exit code {self.process.exitcode}): killed, "
                        'out of memory, or started by a script without `if __name__ == "__main__":`; run '
                        "again, with fewer workers or smaller batches if memory is short"
                    )
                )


def _serve(pipe: Connection, make: Callable[[], Pool], layout: Layout) -> None:
    """Do what the parent asks, in the worker, until it says "close" or is gone."""
    raise_open_files()
    threading.Thread(target=die_with_parent, daemon=True).start()
    file, pool = recv_handle(pipe), make()
    slots: dict[int, Slot] = {}
    begun: SimpleQueue[tuple[int, Tasks]] = SimpleQueue()
    threading.Thread(target=_answer, args=(pipe, begun), daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            asked, method, arguments = pipe.recv()
            tasks: Tasks = []
            if method == "close":
                break
            if method == "submit":
                plan, number, first = arguments
                if number not in slots:
                    slots[number] = Slot(number, layout.map(file, number))
                tasks = pool.submit(plan, slots[number], first)
            else:
                getattr(pool, method)(*arguments)
            begun.put((asked, tasks))
    pool.close()


def _answer(pipe: Connection, begun: "SimpleQueue[tuple[int, Tasks]]") -> None:
    """Send what becomes known of rows, in the order in which they were asked for, in a thread."""
    with suppress(OSError):  # the parent is gone
        while True:
            asked, tasks = begun.get()
            answer: object
            try:
                answer = joined([task.result() for task in tasks])
            except BaseException as error:
                answer = error if isinstance(error, SampleError | ToolkitError) else _failed(error)
            pipe.send((asked, answer))


def _failed(error: BaseException) -> RunError:
    return RunError(f"a worker process of the loader failed: {type(error).__name__}: {error}")
