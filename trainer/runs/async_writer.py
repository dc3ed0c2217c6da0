"""Checkpoints written beside the training, by a thread of their own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import RunError
from trainer.runs import checkpoint


class AsyncCheckpointer:
    """Writes a run's checkpoints one after the other while the training goes on.

    What is given is copied to the CPU first, so that later updates do not reach it. At most one is being
    written: the next waits for it, since each takes the memory of a copy.
    """

    def __init__(self, folder: Path, keep: int, warn: Callable[[str], None]) -> None:
        """Write into `folder`, keep the newest `keep`, and tell `warn` of what could not be written."""
        self._folder, self._keep, self._warn = folder, keep, warn
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alexnet-saver")
        self._best: dict[str, Any] | None = None
        self._writing: Future[None] | None = None

    def best(self, content: dict[str, Any]) -> None:
        """Take what `best.pt` shall hold; it is written before the next `last`.

        Killed between the two, a run repeats the epoch and writes both.
        """
        self._best = _copied(content)

    def last(self, content: dict[str, Any], steps: int) -> None:
        """Write `last.pt`, after so many updates of the run."""
        self._wait()
        self._writing = self._thread.submit(self._write, self._best, _copied(content), steps)
        self._best = None

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            RunError: the last of it could not be.
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
        if best is not None:
            checkpoint.write(self._folder / checkpoint.BEST, best)
        checkpoint.write_last(self._folder, last, steps, self._keep)

    def _wait(self) -> None:
        """Wait for what is being written; a full disk is no reason to lose the run."""
        try:
            self.finish()
        except RunError as error:
            self._warn(f"{error}; training goes on, and the checkpoint before it is kept")


def _copied(value: Any) -> Any:
    """Containers and tensors anew, tensors on the CPU; all else as it is."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
