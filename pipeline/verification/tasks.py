"""Run one task for each tar of a dataset."""

from collections.abc import Callable, Sequence
from functools import partial

from pipeline.executors.base import Executor, Item, Result
from pipeline.executors.local import LocalExecutor
from pipeline.progress import OnProgress, counted, no_progress

ONE_BY_ONE: Executor = LocalExecutor()
"""One worker process on this machine."""


def run_tasks(
    executor: Executor,
    work: Callable[[Item], Result],
    tars: Sequence[Item],
    images: Sequence[int],
    on_progress: OnProgress = no_progress,
) -> list[Result]:
    """Run a task for each tar; return their results in the order of the tars.

    Args:
        executor: Executor of the tasks.
        work: Function of one of `tars`, pickled as `Executor.run` says. An error that it raises ends the run.
        tars: One picklable value for each tar.
        images: Number of images in each tar.
        on_progress: Called with (images done, images in all).

    Raises:
        RunError: A worker died.
        Exception: Whatever `work` raises.
    """
    total = sum(images)
    report = counted(on_progress, total)
    found: dict[int, Result] = {}
    # A damaged tar may have more images than its dataset's manifest says.
    for number, result in executor.run(
        partial(_numbered, work=work), list(enumerate(tars)), lambda done: report(min(done, total))
    ):
        found[number] = result
        if not executor.reports_progress:
            report(sum(images[done] for done in found))
    report(total)
    return [found[number] for number in range(len(tars))]


def _numbered(numbered: tuple[int, Item], work: Callable[[Item], Result]) -> tuple[int, Result]:
    number, item = numbered
    return number, work(item)
