"""The loader: an iterator over batches of a prepared dataset, for training or evaluation.

Shapes: B batch, V views (10 for ten crops, else absent), C = 3, S crop.
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import nvidia.dali
import torch
from torch import Tensor

from pipeline.arguments import COUNT, checked
from pipeline.dataset.dataset import Dataset
from pipeline.errors import RunError, UsageError
from pipeline.host import refuse_too_many_open_files
from pipeline.loader import order
from pipeline.loader.dali import graph
from pipeline.loader.dali.diagnosis import diagnose_batch
from pipeline.loader.dali.prefetch import Ahead, Place
from pipeline.loader.dali.segment import Segment, dali_message
from pipeline.loader.order import Piece
from pipeline.loader.placement import Placement
from pipeline.loader.shard_files import ReadOptions, ShardFiles
from pipeline.loader.state import Position
from pipeline.loader.views import EvalView, TrainView, check_view
from pipeline.seeds import derive_seed

# One segment in use, one prefetched, and one held by another loader (validation).
_SEGMENTS_IN_CACHE = 3


@dataclass(frozen=True)
class Batch:
    """Images and labels of one step.

    On a GPU the images are ready on the CUDA stream that was current when the batch was yielded. If another
    stream reads them, call `other.wait_stream(current)` first, and `current.wait_stream(other)` before the
    batch is dropped. `record_stream` has no effect, as the memory is DALI's and not of torch's allocator.

    Attributes:
        images: float32 or float16 (B, C, S, S), or (B, V, C, S, S) for ten crops, on the placement's device.
        labels: int64 (B,), on the CPU.
        keys: Key of each sample if the loader was made with `keys=True`, else empty.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]


class Loader:
    """Iterate over the batches of an epoch. `close`, or leaving the `with` block, frees DALI's memory.

    With a `TrainView`, an epoch is shuffled and shows each sample at most once; all batches are full, and
    all ranks get the same number of batches. Fewer samples than a global batch are left out, different
    ones in each epoch. With an `EvalView`, the ranks together show each sample exactly once, in order; the
    last batch may be smaller.

    An epoch is read in segments (`pipeline.loader.order`), each by its own DALI pipeline. The next
    segment's pipeline is built while the current one is in use.

    Examples:
        >>> with Loader(Dataset.open("imagenet"), "train", TrainView(), 128) as loader:
        ...     for batch in loader:
        ...         step(batch.images, batch.labels)
    """

    @checked(batch_size=COUNT, shuffle_buffer=COUNT, epochs=COUNT)
    def __init__(
        self,
        dataset: Dataset,
        split: str,
        view: TrainView | EvalView,
        batch_size: int,
        *,
        placement: Placement | None = None,
        seed: int = 0,
        shuffle_buffer: int = 2048,
        half: bool = False,
        channels_last: bool = False,
        keys: bool = False,
        access: ReadOptions | None = None,
        epochs: int | None = None,
    ) -> None:
        """Check the arguments; the first iteration builds the first pipeline.

        Args:
            dataset: The opened dataset.
            split: "train", "val" or "test".
            view: Crops, flips and normalization of each image.
            batch_size: Samples per batch of this process (local batch size), at least 1.
            placement: Rank, world size and device of this process. The default is a single process on
                the CPU.
            seed: Seed of order and augmentation. All ranks share the order of shards; shuffling within
                the buffer and augmentation differ from rank to rank.
            shuffle_buffer: Number of samples from which the next sample of a training epoch is drawn, at
                least 1; 1 keeps the order within shards. Evaluation ignores it.
            half: Give float16 images instead of float32.
            channels_last: Store images in torch's channels-last memory format.
            keys: Fill `Batch.keys`.
            access: How shards are read. By default they are memory-mapped, without a cache.
            epochs: Number of epochs that will be read, so that nothing is prefetched after the last.
                None if there is no known end.

        Raises:
            UsageError: The dataset has no such split or the split is empty; the crop is larger than the
                images; a training split has fewer samples than one global batch; the cache is too small;
                `batch_size`, `shuffle_buffer` or `epochs` is below 1; or DALI cannot read the dataset's
                bucket.
        """
        self.dataset = dataset
        self.split = split
        self.view = view
        self.batch_size = batch_size
        self.placement = placement or Placement()
        self.seed = seed
        self._training = isinstance(view, TrainView)
        self._buffer = shuffle_buffer if self._training else 0
        self._output = graph.OutputSettings(half, channels_last, keys)
        self._epochs = epochs
        self._shard_files = ShardFiles(dataset, split, access or ReadOptions())
        self.samples = sum(self._shard_files.sizes)
        check_view(view, dataset.image.size)
        self._check_enough()
        most = min(len(self), max(order.SEGMENT // batch_size, 1)) * batch_size
        self._shard_files.check_limit(most, _SEGMENTS_IN_CACHE * self.placement.local_world_size)
        self._place = self._first_position()
        self._resuming = False
        self._segment: Segment | None = None
        self._ahead = Ahead()
        self._closed = False

    def __len__(self) -> int:
        """Number of batches per epoch on this rank."""
        if self._training:
            return self.samples // (self.placement.world_size * self.batch_size)
        return self._batches(self._share(0))

    @property
    def epoch(self) -> int:
        """Current epoch, counted from 0; between two iterations, the epoch that comes next."""
        return self._place.epoch

    @property
    def batch(self) -> int:
        """Number of batches of the current epoch yielded so far."""
        return self._place.batch

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of `epoch`, counted from 0. Any epoch can be entered."""
        self._close_segment()
        self._place = self._place.at(epoch)
        self._resuming = False

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch, or the rest of one after `load_state_dict`.

        An epoch that is abandoned halfway starts over at the next call.

        Raises:
            UsageError: The loader is closed.
            RunError: A sample cannot be read or decoded, or its label is invalid; the message names it.
            RuntimeError: Another iteration began, or the loader was closed, during this one.
        """
        if self._closed:
            raise UsageError("this loader is closed; make another")
        self._close_segment()  # left open by an iteration that did not reach its end
        if not self._resuming:
            self._place = self._place.at(self._whole(self._place).epoch)
        self._resuming = False
        epoch, done = self._place.epoch, self._place.batch
        plan = self._segments(epoch)
        for number, pieces in enumerate(plan):
            if done < self._batches(pieces):
                yield from self._give(Place(epoch, number), done, last=number + 1 == len(plan))
            done = max(done - self._batches(pieces), 0)
        self._place = self._place.at(epoch + 1)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the pipelines' memory and delete temporary files; the loader cannot be used afterwards."""
        self._closed = True
        self._shard_files.stop()
        self._ahead.close()
        self._close_segment()

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch yielded, as a dict of strings, numbers and dicts."""
        return self._whole(self._here()).to_state()

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Resume at the batch that follows the one after which `state_dict` was called.

        With another number of processes or another device, a partly read epoch cannot be continued: its
        rest is skipped, and the next iteration starts the next epoch.

        Args:
            state: What `state_dict` returned, on this rank.

        Returns:
            Number of samples, over all processes, that are skipped; 0 if the loader resumes exactly.

        Raises:
            UsageError: The state has another dataset, split, view, seed, global batch, order or version
                of DALI (the message says which), belongs to another rank, or cannot be read.
        """
        self._place, left_out = self._place.entered_from(state)
        self._resuming = True
        self._close_segment()
        return left_out

    def _give(self, place: Place, done: int, *, last: bool) -> Iterator[Batch]:
        """Yield the batches of the segment at `place`.

        Args:
            place: Epoch and number of the segment.
            done: Batches of this segment that were yielded before the iteration began.
            last: Whether this is the epoch's last segment.
        """
        epoch, number = place
        ready = self._ahead.take(None if done else place)
        self._segment = segment = ready or self._build(place, self._place.dali if done else b"", done)
        try:
            segment.start()
            if not last:
                self._ahead.build(Place(epoch, number + 1), self._build)
            elif self._training and epoch + 1 != self._epochs:
                self._ahead.build(Place(epoch + 1, 0), self._build)
            batches = iter(segment)
            while (batch := self._next(batches, segment)) is not None:
                if segment.all_begun:
                    self._ahead.start()  # the current pipeline has no more work for the cores
                self._place = self._place.at(epoch, self._place.batch + 1)
                yield batch
                if self._segment is not segment:
                    raise RuntimeError("another iteration of this loader has begun, or it was closed")
        finally:
            # Otherwise another iteration owns the loader now, or the interpreter is shutting down.
            if self._segment is segment and not sys.is_finalizing():
                self._place = self._here()
                self._segment = None
            segment.close()

    def _next(self, batches: Iterator[tuple[Tensor, ...]], segment: Segment) -> Batch | None:
        try:
            outputs = next(batches, None)
        except RuntimeError as error:
            raise diagnose_batch(error, self.dataset, segment, segment.done) from error
        if outputs is None:
            return None
        images, digits, *keys = outputs
        labels = _labels(digits)
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(self.dataset.classes):
            wrong = ValueError(f"labels {labels.tolist()}")
            raise diagnose_batch(wrong, self.dataset, segment, segment.done - 1)
        if self._output.channels_last:
            images = images.movedim(-1, -3)
        return Batch(images, labels, [_key(row) for row in keys[0]] if keys else [])

    def _share(self, epoch: int) -> list[Piece]:
        place, sizes = self.placement, self._shard_files.sizes
        if not self._training:
            return order.evaluation_share(sizes, place.rank, place.world_size)
        return order.training_share(sizes, self.seed, epoch, place.rank, place.world_size, self.batch_size)

    def _segments(self, epoch: int) -> list[list[Piece]]:
        return order.segments(self._share(epoch), self.batch_size)

    def _batches(self, pieces: list[Piece]) -> int:
        return math.ceil(sum(piece.samples for piece in pieces) / self.batch_size)

    def _build(self, place: Place, checkpoint: bytes = b"", done: int = 0) -> Segment:
        opened = self._shard_files.acquire(self._segments(place.epoch)[place.number])
        try:
            return Segment(
                opened,
                self.dataset.manifest,
                self.view,
                self._output,
                self.placement,
                self.batch_size,
                seed=derive_seed(self.seed, "rank", self.placement.rank, *place),
                buffer=self._buffer,
                checkpoint=checkpoint or None,
                done=done,
            )
        except BaseException as error:
            opened.release()
            if isinstance(error, RuntimeError):
                refuse_too_many_open_files(error)
                raise RunError(
                    f"{self.dataset.url}: DALI cannot read {self.split}: {dali_message(error)}; "
                    f"`alexnet-prep verify {self.dataset.url}` lists what is damaged"
                ) from error
            raise

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _whole(self, place: Position) -> Position:
        """Replace the end of an epoch by the start of the next; return other positions unchanged."""
        return place.at(place.epoch + 1) if place.batch == len(self) > 0 else place

    def _here(self) -> Position:
        """Return the position after the last batch yielded."""
        return self._place if self._segment is None else replace(self._place, dali=self._segment.state())

    def _first_position(self) -> Position:
        view: dict[str, Any] = asdict(self.view)
        shown = {name: view.pop(name) for name in [*view] if name in ("name", "augmentation", "crop")}
        colors = hashlib.sha256(json.dumps(view, default=lambda array: array.tolist()).encode())
        values: dict[str, object] = {
            "dataset": self.dataset.fingerprint,
            "split": self.split,
            "samples": self.samples,
            "global_batch": self.batch_size * self.placement.world_size,
            "seed": self.seed,
            **shown,
            "colors": colors.hexdigest()[:16],
            "shuffle_buffer": self._buffer,
            "segment": order.SEGMENT,
            "keys": self._output.keys,
            "dali": nvidia.dali.__version__,
        }
        content = {name: str(value) for name, value in values.items()}
        place = self.placement
        process = {"rank": str(place.rank), "world_size": str(place.world_size), "device": place.device}
        return Position(content, process, epoch=0, batch=0)

    def _check_enough(self) -> None:
        if self.samples == 0:
            raise UsageError(f"{self.dataset.url}: the split {self.split!r} holds no samples")
        if self._training and len(self) == 0:
            raise UsageError(
                f"{self.dataset.url}: {self.split} has {self.samples} samples, fewer than one global "
                f"batch of {self.batch_size * self.placement.world_size}; choose a smaller batch_size"
            )


def _labels(digits: Tensor) -> Tensor:
    """Convert ASCII digits, uint8 (B, W), or numbers, int32 (B, 1), to int64 (B,); -1 if not a number."""
    if digits.dtype != torch.uint8:
        return digits.flatten().to(torch.int64)
    values = digits.to(torch.int64) - ord("0")
    powers = torch.tensor([10**k for k in reversed(range(digits.shape[1]))])
    return (values * powers).sum(dim=1).where(((values >= 0) & (values <= 9)).all(dim=1), -1)


def _key(row: Tensor) -> str:
    """Extract KEY from DALI's zero-padded `…/train-000000.tar:26112:KEY.jpg`, uint8 (L,)."""
    text = bytes(row.cpu().numpy()).rstrip(b"\0").decode()
    return text.rsplit(":", 1)[1].removesuffix(".jpg")
