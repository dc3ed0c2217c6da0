"""The loader: an iterator over batches of a prepared dataset, for training or evaluation.

    order ─► plan of a batch: samples, random numbers ─► backend ─► batch

Shapes: B batch, V views (10 for ten crops, else absent), C = 3, S crop.
"""

import hashlib
import json
import math
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arguments import COUNT, checked
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.manifest import Shard
from pipeline.errors import RunError, ToolkitError, UsageError
from pipeline.loader.augmentation import draw
from pipeline.loader.backend import Backend, OutputSettings, Plan
from pipeline.loader.live_shards import AHEAD, LiveShards, ReadOptions, SampleError
from pipeline.loader.order import EvaluationOrder, Order, TrainingOrder, lanes_of, most_at_once
from pipeline.loader.placement import BackendName, Placement, has_dali, refuse_missing_dali
from pipeline.loader.stats import LoaderStats, Stopwatch, Sums
from pipeline.loader.threads.backend import ThreadBackend
from pipeline.loader.threads.cutter import Transform, TransformFunction
from pipeline.loader.views import EvalView, TrainView, check_view

# All lanes may change to their next shards at once, while batches under way still need the former ones.
_SHARDS_OF_LANE = 2
# More shards of a process or worker: those opened ahead, and those of a validation within the epoch.
_MORE_SHARDS = AHEAD + 4
_FROM_0 = (0, math.inf)
_DEEPEST = 4  # batches that a backend has under way, at most


@dataclass(frozen=True)
class Batch:
    """Images and labels of one step.

    Batches in host memory stay valid for as long as they are held. On a GPU the images are ready on the CUDA
    stream that was current when the batch was yielded. If another stream reads them, call
    `other.wait_stream(current)` first, and `current.wait_stream(other)` before the batch is dropped.
    `record_stream` has no effect on DALI's batches, whose memory is not of torch's allocator.

    Attributes:
        images: float32 or float16 (B, C, S, S), or (B, V, C, S, S) for ten crops, on the placement's device.
        labels: int64 (B,), on the CPU.
        keys: Key of each sample.
        positions: int64 (B,), position of each sample in the split.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]
    positions: NDArray[np.int64]


class Loader:
    """Iterate over the batches of an epoch. `close`, or leaving the `with` block, frees threads and memory.

    With a `TrainView`, an epoch is shuffled and shows each sample at most once; all global batches are full,
    and each process gets its slice of every one. Fewer samples than a global batch are left out, different
    ones in each epoch. With an `EvalView`, the processes take whole batches in turns and together show each
    sample exactly once, in order; the last batch may be smaller.

    Which samples a global batch holds, and what is cut, flipped and added there, depends on the dataset, the
    seed, the epoch and the global batch alone: not on the number of processes or the backend.

    Examples:
        >>> with Loader(Dataset.open("imagenet"), "train", TrainView(), 128) as loader:
        ...     for batch in loader:
        ...         step(batch.images, batch.labels)
    """

    @checked(global_batch=COUNT, seed=_FROM_0)
    def __init__(
        self,
        dataset: Dataset,
        split: str,
        view: TrainView | EvalView,
        global_batch: int,
        *,
        backend: BackendName | Literal["auto"] = "auto",
        placement: Placement | None = None,
        seed: int = 0,
        half: bool = False,
        channels_last: bool = False,
        access: ReadOptions | None = None,
        transform: TransformFunction | None = None,
    ) -> None:
        """Check the arguments; the first iteration starts the backend.

        Args:
            dataset: The opened dataset.
            split: "train", "val" or "test".
            view: Crops, flips and normalization of each image.
            global_batch: Samples in a batch of all processes, of which each gets its slice; with an
                `EvalView`, samples in a batch that one process takes whole.
            backend: "dali" or "threads"; "auto" takes DALI, if it is installed, where batches are left on a
                GPU.
            placement: Rank, world size and device of this process. The default is a single process on
                the CPU.
            seed: Seed of order and augmentation, the same on all processes.
            half: Give float16 images instead of float32.
            channels_last: Store images in torch's channels-last memory format.
            access: How shards are read. By default they are memory-mapped, without a cache.
            transform: Changes each image before the view cuts it, as `open_loader` describes.

        Raises:
            UsageError: The dataset has no such split or the split is empty; the crop is larger than the
                images; a training split has fewer samples than one global batch; the number of processes
                does not divide a global batch; the cache is too small; a number is out of range; or DALI is
                to call a transform, or is not installed.
        """
        self.dataset, self.split, self.view = dataset, split, view
        self.global_batch, self.seed = global_batch, seed
        self.placement = place = placement or Placement()
        self.backend: BackendName = (
            ("dali" if place.gpu is not None and not transform and has_dali() else "threads")
            if backend == "auto"
            else backend
        )
        self._training = isinstance(view, TrainView)
        self._output = OutputSettings(half, channels_last)
        self._shards = LiveShards(dataset, split, access or ReadOptions())
        sizes = self._shards.sizes
        self._begins = np.cumsum(sizes, dtype=np.int64) - np.asarray(sizes, np.int64)
        self.samples = sum(sizes)
        self._transform = transform and Transform(transform, seed, self._begins)
        check_view(view, dataset.image.size)
        self._check()
        if access is not None and access.cache_limit is not None:
            self._shards.check_limit(self._most_shards())
        self.epoch, self.batch = 0, 0
        self._length = self._order(0).batches
        self._entering = False
        self._maker: Backend | None = None
        self._sums = Sums()
        self._iteration = 0
        self._closed = False

    def __len__(self) -> int:
        """Number of batches per epoch on this process."""
        return self._length

    def stats(self) -> LoaderStats:
        """Return what this process's batches took so far, since its first iteration or the last error.

        Subtract an earlier snapshot for the batches since then.
        """
        return self._sums.stats()

    def to_fetch(self) -> list[Shard]:
        """Return the shards that this process's next iteration must fetch before its first batch.

        They are those that this batch needs, in a bucket or, with a cache, not yet in it.
        """
        uses = self._order(self.epoch).uses(self.batch)
        return self._shards.to_fetch([use for use in uses if use.first <= self.batch])

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of `epoch`, counted from 0. Any epoch can be entered."""
        self.set_position(epoch, 0)
        self._entering = False

    @checked(epoch=_FROM_0, batch=_FROM_0)
    def set_position(self, epoch: int, batch: int) -> None:
        """Start the next iteration at batch `batch` of `epoch`, both counted from 0.

        At the end of an epoch it yields nothing, and the one after it the next epoch.

        Raises:
            UsageError: A number is below 0, or the epoch has fewer batches.
        """
        if batch > len(self):
            raise UsageError(f"batch {batch} of an epoch of {len(self)} batches; choose at most {len(self)}")
        self._stop()
        self.epoch, self.batch, self._entering = epoch, batch, True

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch, or the rest of one after `set_position` or `load_state_dict`.

        An epoch that is abandoned halfway starts over at the next call.

        Raises:
            UsageError: The loader is closed.
            RunError: A sample cannot be read or decoded, its label is invalid, or the transform failed; the
                message names it.
            RuntimeError: Another iteration began, or the loader was closed, during this one.
        """
        if self._closed:
            raise UsageError("this loader is closed; make another")
        self._stop()
        if not self._entering:
            self.set_epoch(self.epoch + (self.batch == len(self) > 0))
        self._entering = False
        iteration, epoch, thread = self._iteration, self.epoch, threading.get_ident()
        order, maker = self._order(epoch), self._started()
        maker.begin(order, self.batch)
        planned, positions = self.batch, deque[NDArray[np.int64]]()
        try:
            for number in range(self.batch, order.batches):
                watch, ready, under_way = Stopwatch(self._sums), maker.ready(), planned - number
                while planned < min(order.batches, number + maker.depth):
                    plan = self._plan(order, epoch, planned)
                    positions.append(self._begins[plan.samples.shards] + plan.samples.samples)
                    maker.submit(plan)
                    planned += 1
                images, labels, keys = maker.take()
                watch.lap("wait")
                self._sums.ready += ready
                self._sums.under_way += under_way
                self._sums.batches += 1
                self.batch = number + 1
                yield Batch(images, torch.from_numpy(labels), keys, positions.popleft())
                if iteration != self._iteration:
                    raise RuntimeError("another iteration of this loader has begun, or it was closed")
        except (SampleError, ToolkitError) as error:
            self._end_maker()  # it may not survive
            raise (self._diagnosis(error) if isinstance(error, SampleError) else error) from error.__cause__
        finally:
            # A generator may also be collected as garbage, in any thread: then the next iteration stops it.
            if iteration == self._iteration and threading.get_ident() == thread:
                self._stop()
        self.epoch, self.batch = epoch + 1, 0

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the backend's threads and free its memory; the loader cannot be used afterwards."""
        self._closed = True
        self._iteration += 1
        self._end_maker()
        self._shards.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch yielded, as a dict of strings, numbers and dicts.

        In training it is the same on every process, and any number of processes can resume there. In an
        evaluation it is this process's own.
        """
        return {"epoch": self.epoch, "batch": self.batch, "content": self._content()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at the batch that follows the one after which `state_dict` was called.

        This is as in torchdata's StatefulDataLoader: after the last batch of an epoch, but before its
        iteration ended, what is left of it is nothing.

        Args:
            state: What `state_dict` returned, on any process of any number, with either backend.

        Raises:
            UsageError: The state has another dataset, split, view, seed or global batch (the message says
                which), or cannot be read.
        """
        try:
            was, epoch, batch = dict(state["content"]), int(state["epoch"]), int(state["batch"])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"the saved place in the data cannot be read ({type(error).__name__}: {error}); it is of "
                "another version of this toolkit, or damaged"
            ) from error
        now = self._content()
        differences = [
            f"{name} was {was.get(name)}, now {now.get(name)}"
            for name in now | was
            if was.get(name) != now.get(name)
        ]
        if differences:
            raise UsageError(
                f"the saved place in the data belongs to another run: {'; '.join(differences)}; resume with "
                "the same data and recipe"
            )
        self.set_position(epoch, batch)

    def _order(self, epoch: int) -> Order:
        place, sizes = self.placement, self._shards.sizes
        ranks = {"rank": place.rank, "world_size": place.world_size}
        if not self._training:
            return EvaluationOrder(sizes, self.global_batch, **ranks)
        return TrainingOrder(sizes, self.seed, epoch, self.global_batch, lanes=self._lanes, **ranks)

    @property
    def _lanes(self) -> int:
        return lanes_of(self.global_batch, shuffled=not self.dataset.manifest.adopted)

    def _most_shards(self) -> int:
        """Return how many shards the processes of this host may need at the same time."""
        place, order = self.placement, self._order(0)
        pools = max(place.worker_count, 1) if self.backend == "threads" else 1
        more = _MORE_SHARDS * pools * place.local_world_size
        held = most_at_once(order.uses(), _DEEPEST) * place.local_world_size
        if self._training:  # other epochs may need a few more
            held = max(held, _SHARDS_OF_LANE * -(-self._lanes * place.local_world_size // place.world_size))
        return held + more

    def _plan(self, order: Order, epoch: int, number: int) -> Plan:
        """Decide what a batch holds and what is cut there."""
        draws = None
        if isinstance(self.view, TrainView):
            local = self.global_batch // self.placement.world_size
            first = self.placement.rank * local
            group = self.view.crop_group
            draws = draw(self.seed, epoch, number, self.global_batch, group).rows(first, first + local)
        return Plan(epoch, number, order.batch(number), draws)

    def _started(self) -> Backend:
        """Return the backend, made at the first call: importing DALI takes a second."""
        if self._maker is None:
            place = self.placement
            size = self.global_batch // (place.world_size if self._training else 1)
            settings = self._shards, self.view, self.dataset.image, self._output, size, place
            if self.backend == "dali":
                from pipeline.loader.dali.backend import DaliBackend

                self._maker = DaliBackend(*settings)
            else:
                device = None if place.gpu is None else torch.device("cuda", place.gpu)
                self._maker = ThreadBackend(*settings, device, self._transform)
            self._sums = self._maker.sums
        return self._maker

    def _end_maker(self) -> None:
        if self._maker is not None:
            self._maker.close()
            self._maker = None

    def _stop(self) -> None:
        """End the iteration that is under way, if any, and forget its batches."""
        self._iteration += 1
        if self._maker is not None:
            self._maker.drop()

    def _diagnosis(self, error: SampleError) -> RunError:
        """Return an error of one line that names a sample's shard, key, byte range and problem."""
        url = self.dataset.store.url_of(error.shard)
        remedy = (
            f"`alexnet-prep verify {self.dataset.url}` lists everything that changed since it was written"
        )
        if error.path != url:
            remedy = f"delete this cached copy of {url}, and it is fetched again; {remedy}"
        return RunError(
            f"{error.path}: the sample {error.key} (bytes {error.begin:,} to {error.end:,}) is damaged: "
            f"{error.problem}; {remedy}"
        )

    def _content(self) -> dict[str, str]:
        """Settings that decide which batches there are."""
        view: dict[str, Any] = asdict(self.view)
        names = ("name", "augmentation", "crop", "crop_group")
        shown = {name: view.pop(name) for name in names if name in view}
        colors = hashlib.sha256(json.dumps(view, default=lambda array: array.tolist()).encode())
        values: dict[str, object] = {
            "dataset": self.dataset.fingerprint,
            "split": self.split,
            "samples": self.samples,
            "global_batch": self.global_batch,
            "seed": self.seed,
            # Of an evaluation, each process counts the batches that it takes.
            **({} if self._training else {"world_size": self.placement.world_size}),
            **shown,
            **({"transform": self._transform.name} if self._transform else {}),
            "colors": colors.hexdigest()[:16],
        }
        return {name: str(value) for name, value in values.items()}

    def _check(self) -> None:
        place, size = self.placement, self.global_batch
        if self.samples == 0:
            raise UsageError(f"{self.dataset.url}: the split {self.split!r} holds no samples")
        if self.backend == "dali":
            if self._transform:
                raise UsageError("DALI calls no transform; choose the backend threads, or no transform")
            refuse_missing_dali()
        if self._training and size % place.world_size:
            below = size // place.world_size * place.world_size
            above = below + place.world_size
            near = below if below and size - below <= above - size else above
            raise UsageError(
                f"{place.world_size} processes do not divide a global batch of {size}; choose one of {near}"
            )
        if self._training and self.samples < size:
            raise UsageError(
                f"{self.dataset.url}: {self.split} has {self.samples} samples, fewer than one global batch "
                f"of {size}; choose a smaller batch"
            )
