"""The thread backend: a pool of Python threads that decode into buffers of whole batches.

libjpeg-turbo and OpenCV release the interpreter's lock, so that threads decode side by side; some 13 µs an
image hold it, and more than some 8 threads do not help.
"""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.dataset.manifest import ImageFormat
from pipeline.images.codec import DecodeError
from pipeline.loader.augmentation import shape_in_loader
from pipeline.loader.backend import (
    Backend,
    OutputSettings,
    Plan,
    Result,
    SampleError,
    Source,
)
from pipeline.loader.ring import Ring
from pipeline.loader.stats import Stopwatch, Sums
from pipeline.loader.threads.cutter import Cutter
from pipeline.loader.views import EvalView, TrainView

# Images of a task. With fewer, handing tasks over costs throughput; with more, the first batch takes longer.
_TASK = 16
_DEPTH = 4


class ThreadBackend(Backend):
    """Makes batches in host memory."""

    def __init__(
        self,
        view: TrainView | EvalView,
        stored: ImageFormat,
        output: OutputSettings,
        batch_size: int,
        threads: int,
        *,
        pinned: bool = False,
    ) -> None:
        """Start the pool's threads when the first plan is submitted.

        Args:
            view: Crops, flips and normalization.
            stored: Size and mode of the stored images.
            output: Format of the images.
            batch_size: Largest number of samples in a batch.
            threads: Number of threads.
            pinned: Whether batches lie in page-locked memory, for copies to a GPU.
        """
        self._view, self._stored = view, stored
        image = (view.crop, view.crop, 3) if output.channels_last else (3, view.crop, view.crop)
        views = (10,) if isinstance(view, EvalView) and view.name == "ten-crop" else ()
        dtype = np.dtype(np.float16 if output.half else np.float32)
        self._channels_last = output.channels_last
        self._ring = Ring((batch_size, *views, *image), dtype, pinned=pinned)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="alexnet-decode")
        self._cutters = threading.local()
        self._under_way: deque[tuple[Plan, NDArray[Any], NDArray[np.int64], list[Future[Sums]]]] = deque()
        self.depth, self.sums = _DEPTH, Sums()

    def submit(self, plan: Plan) -> None:
        """Start to make a batch in the background."""
        count = len(plan.sources)
        images, labels = self._ring.take(), np.empty(count, np.int64)
        tasks = [
            self._pool.submit(self._work, plan, first, min(first + _TASK, count), images, labels)
            for first in range(0, count, _TASK)
        ]
        self._under_way.append((plan, images, labels, tasks))

    def take(self) -> tuple[Plan, Result]:
        """Return the oldest plan and its batch, after waiting for it."""
        plan, array, labels, tasks = self._under_way[0]
        for task in tasks:
            took = task.result()
            self.sums.read += took.read
            self.sums.decode += took.decode
            self.sums.augment += took.augment
        self._under_way.popleft()
        images = torch.from_numpy(array)[: len(labels)]
        return plan, Result(images.movedim(-1, -3) if self._channels_last else images, labels)

    def ready(self) -> float:
        """Return how many of the batches under way are done."""
        return sum(all(task.done() for task in tasks) for *_, tasks in self._under_way)

    def drop(self) -> None:
        """Forget all plans that are under way, after waiting for what has begun."""
        dropped = [task for *_, tasks in self._under_way for task in tasks if not task.cancel()]
        self._under_way.clear()
        for task in dropped:
            task.exception()

    def close(self) -> None:
        """Drop all plans and end the threads.

        A thread that is inside OpenCV when the interpreter ends would abort the process.
        """
        self.drop()
        self._pool.shutdown()

    def _work(
        self, plan: Plan, first: int, end: int, images: NDArray[Any], labels: NDArray[np.int64]
    ) -> Sums:
        """Make the rows `first` to `end - 1` of a batch; return what they took."""
        cutter: Cutter | None = getattr(self._cutters, "cutter", None)
        if cutter is None:
            cutter = self._cutters.cutter = Cutter(self._view, self._stored)
        sources, sums = plan.sources[first:end], Sums()
        watch = Stopwatch(sums)
        found = []
        for row, source in enumerate(sources, first):
            with _naming(source):
                data = source.shard.image(source.sample)
                labels[row] = source.shard.label(source.sample)
                found.append((data, shape_in_loader(data, self._view, self._stored)))
        watch.lap("read")
        cuts = cutter.cuts(
            plan.draws.rows(first, end) if plan.draws else None, np.array([shape for _, shape in found])
        )
        for row, (source, (data, shape)) in enumerate(zip(sources, found, strict=True)):
            with _naming(source):
                pixels = cutter.decode(data, shape)
            watch.lap("decode")
            cutter.cut(pixels, cuts, row, images[first + row])
            watch.lap("augment")
        return sums


@contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Within the block, name the sample in errors."""
    try:
        yield
    except (DecodeError, OSError, ValueError) as error:
        raise SampleError(source, str(error)) from error
