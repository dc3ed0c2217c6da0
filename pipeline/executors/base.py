"""`Executor`: the interface of what runs tasks.

An executor maps a function over items and yields results as they arrive, in any order. Tasks themselves write
their results to disk, so an executor that stops halfway loses no finished task: the next run does the rest.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

from pipeline.progress import counted, no_progress

Item = TypeVar("Item")
Result = TypeVar("Result")
NOT_REPORTED = counted(no_progress, 0)
"""Ignores progress: the default of `Executor.run`."""


class Executor(Protocol):
    """Runs tasks in other processes."""

    @property
    def reports_progress(self) -> bool:
        """Whether `run` calls `on_progress` while tasks are unfinished."""

    def run(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        on_progress: Callable[[int], None] = NOT_REPORTED,
    ) -> Generator[Result, None, None]:
        """Yield `work(item)` for each item as it finishes; closing the generator cancels tasks not yet begun.

        Args:
            work: a function at the top level of a module, or a `functools.partial` of one, as it is pickled
                by name.
            items: one small picklable value per task.
            on_progress: called now and then with the number of images that the tasks of this run have
                processed so far, if `reports_progress`.

        Raises:
            RunError: a worker process died.
            Exception: whatever `work` raises.
        """
