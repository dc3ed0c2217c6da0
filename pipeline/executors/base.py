"""Where tasks run.

An engine maps a function over items and yields results as they come, in any order. Tasks write what they
make durably themselves, so an engine that stops half-way loses nothing: the next run does the rest.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
OnProgress = Callable[[int], None]
"""Called now and then with how many images the tasks of this run have handled."""


class Executor(Protocol):
    """Runs tasks somewhere."""

    @property
    def reports_progress(self) -> bool:
        """Whether `run` tells how far unfinished tasks are."""

    def run(
        self, work: Callable[[Item], Result], items: Sequence[Item], on_progress: OnProgress | None = None
    ) -> Generator[Result, None, None]:
        """Yield `work(item)` for each item as it finishes; closing the iterator cancels what has not begun.

        Args:
            work: a module's function, or a partial of one: it travels by name.
            items: small values; each is a task.
            on_progress: told how far the tasks are, where `reports_progress`.

        Raises:
            RunError: a worker died.
        """
