"""A pool of Python threads that read images and make rows of batches.

libjpeg-turbo and OpenCV release the interpreter's lock, so that threads decode side by side; some 13 µs an
image hold it, and more than some 8 threads do not help. Nothing here needs torch.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import ImageFormat
from pipeline.errors import RunError
from pipeline.images.codec import decode
from pipeline.loader.augmentation import shape_in_loader
from pipeline.loader.backend import Plan
from pipeline.loader.live_shards import DAMAGE, LiveShards, OpenShard
from pipeline.loader.order import Use
from pipeline.loader.ring import Slot
from pipeline.loader.stats import Stopwatch, Sums
from pipeline.loader.threads.cutter import Cutter, Transform, TransformError
from pipeline.loader.views import EvalView, TrainView

# Images of a task. With fewer, handing tasks over costs throughput; with more, the first batch takes longer.
_TASK = 32


class Rows(NamedTuple):
    """What is known of rows of a batch once their images are made.

    Attributes:
        labels: Label of each.
        keys: Key of each sample.
        sums: What they took.
    """

    labels: list[int]
    keys: list[str]
    sums: Sums


Tasks = list[Future[Rows]]
"""What will be known of rows of a batch, in their order."""


def joined(parts: Sequence[Rows]) -> Rows:
    """Join what is known of parts of a batch."""
    rows = Rows([], [], Sums())
    for part in parts:
        rows.labels.extend(part.labels)
        rows.keys.extend(part.keys)
        rows.sums.add_work(part.sums)
    return rows


class Pool:
    """Threads of this process. `submit`, `drop` and `close` are for one thread."""

    def __init__(
        self,
        shards: LiveShards,
        view: TrainView | EvalView,
        stored: ImageFormat,
        threads: int,
        *,
        whole: bool,
        transform: Transform | None,
    ) -> None:
        """Note what is made; the threads start when the first rows are submitted.

        Args:
            shards: Shards of the split.
            view: Crops, flips and normalization.
            stored: Size and mode of the stored images.
            threads: Number of threads.
            whole: Whether to decode whole squares, from which another device cuts.
            transform: Changes each image before it is cut; None to change none.
        """
        self._transform = transform
        self._shards, self._view, self._stored, self._whole = shards, view, stored, whole
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="alexnet-decode")
        self._cutters = threading.local()
        self._under_way: deque[Future[Rows]] = deque()

    def begin(self, uses: Sequence[Use]) -> None:
        """Start an epoch that needs these shards, in the order of first use."""
        self._shards.begin(uses)

    def submit(self, plan: Plan, slot: Slot, first: int) -> Tasks:
        """Start to make rows of a batch.

        Args:
            plan: Plan of these rows.
            slot: Where the images of the batch go.
            first: Row of the plan's first sample.

        Returns:
            What becomes known of some of the rows, in order.
        """
        opened, images = self._shards.of_batch(plan.number), slot.images[first : first + len(plan)]
        while self._under_way and self._under_way[0].done():
            self._under_way.popleft()
        tasks = Tasks()
        for row in range(0, len(plan), _TASK):
            rows = row, row + _TASK
            tasks.append(self._threads.submit(self._make, plan.rows(*rows), opened, images[slice(*rows)]))
            self._under_way.append(tasks[-1])
        return tasks

    def done(self, number: int) -> None:
        """Give up the shards that no batch after `number` needs."""
        self._shards.done(number)

    def drop(self) -> None:
        """Forget all rows that are under way, after waiting for what has begun, and give up the shards."""
        self._shards.cancel()
        for task in [task for task in self._under_way if not task.cancel()]:
            task.exception()
        self._under_way.clear()
        self._shards.release()

    def close(self) -> None:
        """Drop all rows and end the threads.

        A thread that is inside OpenCV when the interpreter ends would abort the process.
        """
        self.drop()
        self._threads.shutdown()

    def _make(self, plan: Plan, opened: "dict[int, Future[OpenShard]]", images: NDArray[Any]) -> Rows:
        """Make the images of some rows."""
        cutter: Cutter | None = getattr(self._cutters, "cutter", None)
        if cutter is None:
            cutter = self._cutters.cutter = Cutter(self._view, self._stored)
        # The other device does not say what augmenting takes.
        rows = Rows([], [], Sums(augment=math.nan if self._whole else 0.0))
        watch, row, encoded, shapes = Stopwatch(rows.sums), 0, [], []
        numbers, samples = plan.samples.shards.tolist(), plan.samples.samples.tolist()
        found = {number: opened[number].result() for number in set(numbers)}
        shards = [found[number] for number in numbers]
        try:  # one for all rows: entering a block for each would hold the interpreter's lock longer
            for row, (shard, sample) in enumerate(zip(shards, samples, strict=True)):  # noqa: B007 - errors name it
                encoded.append(shard.image(sample))
                rows.labels.append(shard.label(sample))
                rows.keys.append(shard.index.keys[sample])
            watch.lap("read")
            if not self._whole and self._transform is None:
                for row, data in enumerate(encoded):  # noqa: B007 - errors name it
                    shapes.append(shape_in_loader(data, self._view, self._stored))
                cuts = cutter.cuts(plan.draws, np.array(shapes))
            for row, data in enumerate(encoded):
                if self._whole:
                    cutter.decode_into(data, images[row])
                    watch.lap("decode")
                elif self._transform is not None:
                    pixels = decode(bytes(data), math.inf).pixels
                    watch.lap("decode")
                    changed = self._transform(pixels, plan.epoch, numbers[row], samples[row])
                    draws = plan.draws.rows(row, row + 1) if plan.draws else None
                    cutter.cut_changed(changed, draws, images[row])
                    watch.lap("augment")
                else:
                    pixels = cutter.decode(data, shapes[row])
                    watch.lap("decode")
                    cutter.cut(pixels, cuts, row, images[row])
                    watch.lap("augment")
        except DAMAGE as error:
            raise shards[row].error(samples[row], error) from error
        except TransformError as error:
            name = f"{shards[row].url}: the transform failed for the sample {rows.keys[row]}"
            raise RunError(f"{name}: {error}") from error.__cause__
        return rows
