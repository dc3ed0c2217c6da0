"""Write checkpoints in a background thread while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import RunError
from pipeline.storage.locks import TakenOverError
from trainer.runs import checkpoint


class AsyncCheckpointer:
    """Writes a run's checkpoints, one at a time, in a background thread.

    The content is copied to the CPU first, so that later steps do not change it. Each copy costs memory, so a
    new checkpoint waits until the one before has been written.
    """

    def __init__(
        self, folder: Path, keep: int, warn: Callable[[str], None], check: Callable[[], None]
    ) -> None:
        """Start the thread.

        Args:
            folder: The run's folder.
            keep: Number of newest checkpoints to keep.
            warn: Called with a line for the user when a checkpoint could not be written.
            check: Called before each file is written; raises TakenOverError where another process has taken
                over the folder.
        """
        self._folder, self._keep, self._warn, self._check = folder, keep, warn, check
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alexnet-checkpoints")
        self._best: dict[str, Any] | None = None
        self._writing: Future[None] | None = None

    def best(self, content: dict[str, Any]) -> None:
        """Copy the content of `best.pt`, which is written just before the next `last`.

        A run that is killed between the two repeats the epoch and writes both again.
        """
        self._best = _copied(content)

    def last(self, content: dict[str, Any], steps: int) -> None:
        """Copy the content of `last.pt` and write it in the background.

        Args:
            content: See `checkpoint.content_of`.
            steps: Steps of the run so far.
        """
        self._wait()
        self._writing = self._thread.submit(self._write, self._best, _copied(content), steps)
        self._best = None

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            RunError: The last checkpoint could not be written.
            TakenOverError: Another process has taken over the folder.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "AsyncCheckpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()
        self._thread.shutdown()

    def _write(self, best: dict[str, Any] | None, last: dict[str, Any], steps: int) -> None:
        self._check()
        if best is not None:
            checkpoint.write(self._folder / checkpoint.BEST, best)
            self._check()
        checkpoint.write_last(self._folder, last, steps, self._keep)

    def _wait(self) -> None:
        """Wait for the checkpoint being written; warn of a failure: a full disk must not end the run."""
        try:
            self.finish()
        except TakenOverError:
            raise
        except RunError as error:
            self._warn(f"{error}; training goes on, and the checkpoint before it is kept")


def _copied(value: Any) -> Any:
    """Copy dicts, lists, tuples and tensors, these to the CPU; return other values as they are."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
