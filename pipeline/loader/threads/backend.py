"""The thread backend: threads of this process, or of worker processes, fill buffers of whole batches.

plan ─ some rows for each pool ─► buffer ─┬─► batch in host memory
                                          └─► copied to a GPU as whole decoded squares, and cut there
"""

import pickle
import sys
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.manifest import ImageFormat
from pipeline.errors import UsageError
from pipeline.loader.backend import Backend, OutputSettings, Plan, Result
from pipeline.loader.live_shards import LiveShards
from pipeline.loader.order import Order, share
from pipeline.loader.placement import Placement
from pipeline.loader.ring import Layout, Ring, Slot
from pipeline.loader.stats import Sums
from pipeline.loader.threads.cutter import Transform
from pipeline.loader.threads.on_device import cuts_on_device, make_on_device
from pipeline.loader.threads.pool import Pool, Tasks, joined
from pipeline.loader.threads.worker import WorkerPool
from pipeline.loader.views import EvalView, TrainView

_DEPTH = 4


class _UnderWay(NamedTuple):
    """A batch that is being made: its plan, its buffer, and what becomes known of its rows."""

    plan: Plan
    slot: Slot
    tasks: Tasks

    @property
    def is_ready(self) -> bool:
        return all(task.done() for task in reversed(self.tasks))


class ThreadBackend(Backend):
    """Makes batches in host memory, or on a device, which is given whole decoded images where it can cut."""

    def __init__(
        self,
        shards: LiveShards,
        view: TrainView | EvalView,
        stored: ImageFormat,
        output: OutputSettings,
        batch_size: int,
        place: Placement,
        device: torch.device | None = None,
        transform: Transform | None = None,
    ) -> None:
        """Start the worker processes, if there are any; threads start when the first plan is submitted.

        Args:
            shards: Shards of the split.
            view: Crops, flips and normalization.
            stored: Size and mode of the stored images.
            output: Format of the images.
            batch_size: Largest number of samples in a batch.
            place: Threads and worker processes.
            device: Device on which batches are left; None for host memory.
            transform: Changes each image before it is cut; None to change none.

        Raises:
            UsageError: The transform cannot be sent to the worker processes.
        """
        self._view, self._stored, self._output, self._device = view, stored, output, device
        self._whole = device is not None and transform is None and cuts_on_device(view, stored)
        workers = min(place.worker_count, batch_size)
        if workers and transform is not None:
            _refuse_unpicklable(transform)
        gpu = device if device is not None and device.type == "cuda" else None
        self._ring = Ring(self._layout(batch_size), gpu=gpu, shared=workers > 0)
        threads = -(-place.thread_count // max(workers, 1))
        make = partial(Pool, shards, view, stored, threads, whole=self._whole, transform=transform)
        self._pools: list[Pool | WorkerPool] = [WorkerPool(make, self._ring) for _ in range(workers)]
        if not workers:
            self._pools.append(make())
        self._under_way: deque[_UnderWay] = deque()
        self._copies: deque[tuple[Any, Tensor]] = deque()
        self.depth, self.sums = _DEPTH, Sums()

    def begin(self, order: Order, start: int) -> None:
        """Start an epoch at batch `start`."""
        for number, pool in enumerate(self._pools):
            pool.begin(order.part(number, len(self._pools)).uses(start))

    def submit(self, plan: Plan) -> None:
        """Start to make a batch in the background."""
        slot, tasks = self._ring.take(), Tasks()
        for number, pool in enumerate(self._pools):
            rows = share(len(plan), number, len(self._pools))
            tasks += pool.submit(plan.rows(rows.start, rows.stop), slot, rows.start)
        self._under_way.append(_UnderWay(plan, slot, tasks))

    def take(self) -> Result:
        """Return the batch of the oldest plan, after waiting for it."""
        plan, slot, tasks = self._under_way[0]
        for task in reversed(tasks):  # the last first, so that this thread is seldom woken up
            task.exception()
        rows = joined([task.result() for task in tasks])
        self._under_way.popleft()
        for pool in self._pools:
            pool.done(plan.number)
        self.sums.add_work(rows.sums)
        images = self._delivered(torch.from_numpy(slot.images)[: len(plan)], plan)
        return Result(images, np.array(rows.labels, np.int64), rows.keys)

    def ready(self) -> float:
        """Return how many of the batches under way are done."""
        return sum(batch.is_ready for batch in self._under_way)

    def drop(self) -> None:
        """Forget all plans that are under way, after waiting for what has begun, and give up the shards."""
        for pool in self._pools:
            pool.drop()
        self._under_way.clear()

    def close(self) -> None:
        """Drop all plans, and end threads and processes."""
        for pool in self._pools:
            pool.close()
        self._under_way.clear()
        self._ring.close()
        for event, _ in self._copies:
            event.synchronize()
        self._copies.clear()

    def _layout(self, batch_size: int) -> Layout:
        side = self._view.crop
        if self._whole:
            return Layout((batch_size, self._stored.size, self._stored.size, 3), np.dtype(np.uint8))
        image = (side, side, 3) if self._output.channels_last else (3, side, side)
        views = (10,) if isinstance(self._view, EvalView) and self._view.name == "ten-crop" else ()
        dtype: np.dtype[Any] = np.dtype(np.float16 if self._output.half else np.float32)
        return Layout((batch_size, *views, *image), dtype)

    def _delivered(self, images: Tensor, plan: Plan) -> Tensor:
        """Return the images of a batch on their device, as (…, C, S, S)."""
        if self._device is not None:
            images = self._copied(images, self._device)
        if self._whole:
            return make_on_device(images, self._view, self._stored, plan.draws, self._output)
        return images.movedim(-1, -3) if self._output.channels_last else images

    def _copied(self, images: Tensor, device: torch.device) -> Tensor:
        """Copy a batch to its device; its buffer is held until that is done."""
        found = images.to(device, non_blocking=True)
        if device.type == "cuda":
            event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._copies.append((event, images))
            while self._copies[0][0].query() and len(self._copies) > 1:
                self._copies.popleft()
        return found


def _refuse_unpicklable(transform: Transform) -> None:
    try:
        pickle.dumps(transform)
        main = getattr(sys.modules["__main__"], "__file__", "")
        if getattr(transform.function, "__module__", "") == "__main__" and not Path(main).is_file():
            raise ValueError("it was typed in")
    except Exception as error:
        raise UsageError(
            f"the transform cannot be sent to worker processes ({error}); define it at the top of a module, "
            "or set workers=0"
        ) from error
