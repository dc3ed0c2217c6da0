"""The DALI backend: one pipeline, fed with encoded images and with arrays of what to cut from them."""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from pipeline.dataset.manifest import ImageFormat
from pipeline.errors import RunError
from pipeline.host import trim_heap
from pipeline.images.codec import DecodeError, decode
from pipeline.loader.augmentation import scales_first, shape_in_loader, shifts, windows
from pipeline.loader.backend import Backend, OutputSettings, Plan, Result
from pipeline.loader.dali import graph
from pipeline.loader.live_shards import DAMAGE, LiveShards, OpenShard
from pipeline.loader.order import Order
from pipeline.loader.placement import Placement
from pipeline.loader.stats import Stopwatch, Sums
from pipeline.loader.views import EvalView, TrainView

# Batches under way: one that the consumer waits for, and two that DALI prepares behind it.
_DEPTH = 3
# In lower case, as in "CUDA allocation failed", "cudaErrorMemoryAllocation", "Can't allocate 1000 bytes".
_MEMORY = ("out of memory", "bad_alloc", "allocation", "allocate")


class _UnderWay(NamedTuple):
    """A batch that is being made: its plan, where its samples are, their encoded images, seconds of reading.

    DALI reads the images where they lie.
    """

    plan: Plan
    sources: list[tuple[OpenShard, int]]
    jpegs: list[NDArray[np.uint8]]
    read: float


class DaliBackend(Backend):
    """Makes batches on a GPU, or in host memory."""

    def __init__(
        self,
        shards: LiveShards,
        view: TrainView | EvalView,
        stored: ImageFormat,
        output: OutputSettings,
        batch_size: int,
        place: Placement,
    ) -> None:
        """Build the pipeline.

        Args:
            shards: Shards of the split.
            view: Crops, flips and normalization.
            stored: Size and mode of the stored images.
            output: Format of the images.
            batch_size: Largest number of samples in a batch.
            place: Device and threads.

        Raises:
            RunError: DALI cannot build it.
        """
        self._shards, self._view, self._stored, self._place = shards, view, stored, place
        self._channels_last = output.channels_last
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="alexnet-read")
        self._under_way: deque[_UnderWay] = deque()
        self.depth = _DEPTH
        self.sums = Sums(decode=math.nan, augment=math.nan, ready=math.nan)
        self._pipe: Any = graph.build(
            view,
            stored,
            place,
            output,
            batch_size=batch_size,
            num_threads=place.thread_count,
            device_id=place.gpu,
            # More runs may be scheduled; a longer queue would need all of them at once.
            prefetch_queue_depth=1,
        )
        try:
            self._pipe.build()
        except RuntimeError as error:
            raise RunError(f"DALI cannot build its pipeline: {dali_message(error)}") from error

    def begin(self, order: Order, start: int) -> None:
        """Start an epoch at batch `start`."""
        self._shards.begin(order.uses(start))

    def submit(self, plan: Plan) -> None:
        """Feed a batch and start to decode it.

        Raises:
            SampleError: A sample cannot be read, or is not an image.
            UsageError: The index of a shard cannot be read.
            RunError: A shard cannot be read.
        """
        took = Sums()
        watch = Stopwatch(took)
        opened = {number: shard.result() for number, shard in self._shards.of_batch(plan.number).items()}
        shards = [opened[number] for number in plan.samples.shards.tolist()]
        sources = list(zip(shards, plan.samples.samples.tolist(), strict=True))
        in_memory = all(shard.in_memory for shard in shards)
        found = [*(map if in_memory else self._readers.map)(self._read, *zip(*sources, strict=True))]
        jpegs, shapes = [data for data, _ in found], np.array([shape for _, shape in found])
        cut = windows(self._view, self._stored, plan.draws, shapes).astype(np.int32)
        self._pipe.feed_input("jpeg", jpegs)
        self._pipe.feed_input("start", np.ascontiguousarray(cut[:, :2]))
        self._pipe.feed_input("size", np.ascontiguousarray(cut[:, 2:]))
        if scales_first(self._view, self._stored):
            self._pipe.feed_input("scaled", shapes.astype(np.float32))
        if isinstance(self._view, TrainView) and plan.draws is not None:
            self._pipe.feed_input("flip", plan.draws.flip.astype(np.int32))
            self._pipe.feed_input("shift", shifts(self._view, plan.draws))
        self._pipe.schedule_run()
        watch.lap("read")
        self._under_way.append(_UnderWay(plan, sources, jpegs, took.read))

    def take(self) -> Result:
        """Return the batch of the oldest plan, after waiting for it.

        Raises:
            SampleError: A sample cannot be decoded, or its label is not the number of a class.
            RunError: DALI failed for another reason.
        """
        batch = self._under_way[0]
        device = self._place.gpu
        stream = None if device is None else torch.cuda.current_stream(device)
        try:
            [output] = self._pipe.outputs(stream)
        except RuntimeError as error:
            raise self._diagnosis(error, batch) from error
        finally:
            self._under_way.popleft()
        self.sums.read += batch.read
        images = from_dlpack(output.as_tensor())
        labels = np.array([_label(*source) for source in batch.sources], np.int64)
        keys = [shard.index.keys[sample] for shard, sample in batch.sources]
        self._shards.done(batch.plan.number)
        return Result(images.movedim(-1, -3) if self._channels_last else images, labels, keys)

    def ready(self) -> float:
        """Return NaN: DALI does not tell which of its batches are done."""
        return math.nan

    def drop(self) -> None:
        """Forget all plans that are under way, after waiting for them, and give up the shards."""
        self._shards.cancel()
        while self._under_way:
            with suppress(RuntimeError):  # of a batch that nobody wants; the next ones are still in the queue
                self._pipe.outputs()
            self._under_way.popleft()
        self._shards.release()

    def close(self) -> None:
        """Drop all plans and free DALI's memory."""
        if self._pipe is not None:
            self.drop()
            self._pipe = None
            self._readers.shutdown()
            trim_heap()

    def _read(self, shard: OpenShard, sample: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        try:
            data = shard.image(sample)
            return np.frombuffer(data, np.uint8), shape_in_loader(data, self._view, self._stored)
        except DAMAGE as error:
            raise shard.error(sample, error) from error

    def _diagnosis(self, error: RuntimeError, batch: _UnderWay) -> Exception:
        """Return an error that names the sample to blame, if DALI says that one does not decode."""
        if _is_of_memory(error):
            return RunError(f"the loader is out of memory: {dali_message(error)}; use smaller batches")
        if "decod" in str(error):
            pipe = graph.decoded(self._place, device_id=self._place.gpu, prefetch_queue_depth=1)
            for (shard, sample), jpeg in zip(batch.sources, batch.jpegs, strict=True):
                problem = _problem(jpeg, pipe)
                if problem:
                    return shard.error(sample, problem)
        return RunError(f"the loader stopped: {dali_message(error)}")


def _problem(jpeg: NDArray[np.uint8], pipe: Any) -> str:
    """Decode one image by the strict decoder of preparation and by DALI; return what is wrong, or ""."""
    try:
        decode(jpeg.tobytes(), float("inf"))
        pipe.feed_input("jpeg", [jpeg])
        pipe.run()
    except DecodeError as error:
        return str(error)
    except RuntimeError as error:
        return "" if _is_of_memory(error) else dali_message(error)
    return ""


def _label(shard: OpenShard, sample: int) -> int:
    try:
        return shard.label(sample)
    except DAMAGE as error:
        raise shard.error(sample, error) from error


def _is_of_memory(error: Exception) -> bool:
    return any(words in str(error).lower() for words in _MEMORY)


def dali_message(error: Exception) -> str:
    """Extract the first line of a DALI error that says what is wrong, without DALI's stack trace."""
    text = str(error).partition("encountered:")[2] or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [line for line in lines if line.startswith("[")] or lines
    return useful[0][:300] if useful else type(error).__name__
