"""Batches of a prepared dataset, each sample exactly as often as it should be.

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

from pipeline.dataset.dataset import Dataset
from pipeline.errors import RunError, UsageError
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

# A segment in use, the next one, and another loader's.
_SEGMENTS_IN_CACHE = 3


@dataclass(frozen=True)
class Batch:
    """What a step consumes.

    Attributes:
        images: float32 or float16 (B, C, S, S), or (B, V, C, S, S) for ten crops.
        labels: int64 (B,), on the CPU.
        keys: the samples' keys, where asked for, else empty.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]


class Loader:
    """An iterator over epochs of batches; close it, or leave its `with` block, to free DALI's memory.

    A `TrainView` gives training epochs: shuffled, each sample at most once, every batch full, and all
    ranks equally many batches; only the remainder below a global batch is left out, another one in
    every epoch. An `EvalView` gives each sample exactly once over all ranks, in order, with a smaller
    last batch.

    >>> with Loader(Dataset.open("imagenet"), "train", TrainView(), 128) as loader:  # doctest: +SKIP
    ...     for batch in loader:
    ...         step(batch.images, batch.labels)

    An epoch is read in segments, each by a DALI pipeline of its own; the next is made ready while one
    is used (`pipeline.loader.loader.order`).
    """

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
        """Check everything that can be checked; the first iteration builds the first pipeline.

        Args:
            dataset: an opened dataset.
            split: "train", "val" or "test".
            view: what is made of each image.
            batch_size: samples per batch of this process.
            placement: which process this is; alone on the CPU by default.
            seed: of order and augmentation. Ranks share the order of shards and differ in all else.
            shuffle_buffer: samples among which the next of a training epoch is drawn; 1 keeps the
                order within shards.
            half: float16 images instead of float32.
            channels_last: images are stored in torch's channels-last memory format.
            keys: fill `Batch.keys`.
            access: how shards are read; mapped where they are by default.
            epochs: how many will be asked for: nothing is made ready beyond the last. None for no end.

        Raises:
            UsageError: no such split, a crop larger than the images, for training fewer samples
                than one global batch, a cache too small, a batch or buffer below one sample.
        """
        for name, value in {"batch_size": batch_size, "shuffle_buffer": shuffle_buffer}.items():
            if value < 1:
                raise UsageError(f"{name} is {value}; give at least 1")
        self.dataset = dataset
        self.split = split
        self.view = view
        self.batch_size = batch_size
        self.placement = placement or Placement()
        self.seed = seed
        self._training = isinstance(view, TrainView)
        self._buffer = shuffle_buffer if self._training else 0
        self._output = graph.OutputSettings(half, channels_last, keys)
        self._sizes = [shard.samples for shard in dataset.shards(split)]
        self.samples = sum(self._sizes)
        check_view(view, dataset.image.size)
        self._check_enough()
        self._epochs = epochs
        self._shard_files = ShardFiles(dataset, split, access or ReadOptions())
        most = min(len(self), max(order.SEGMENT // batch_size, 1)) * batch_size
        self._shard_files.check_limit(most, _SEGMENTS_IN_CACHE * self.placement.local_world_size)
        self._place = Position(self._content(), self._process(), epoch=0, batch=0)
        self._enter_at: Position | None = None
        self._segment: Segment | None = None
        self._ahead = Ahead()
        self._closed = False

    def __len__(self) -> int:
        """Batches in an epoch of this rank."""
        if self._training:
            return self.samples // (self.placement.world_size * self.batch_size)
        return math.ceil(sum(piece.samples for piece in self._share(0)) / self.batch_size)

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0, that is being given, or else that the next iteration gives."""
        return self._place.epoch

    @property
    def batch(self) -> int:
        """Batches of that epoch given so far."""
        return self._place.batch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration give this epoch from its start; any epoch can be entered."""
        self._close_segment()
        self._place = replace(self._place, epoch=epoch, batch=0, dali=b"")
        self._enter_at = None

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch, or what is left of it after `load_state_dict`.

        One that is abandoned halfway starts over at the next call.

        Raises:
            RunError: a sample could not be read or decoded.
        """
        if self._closed:
            raise UsageError("this loader is closed; make another")
        self._close_segment()  # of an iteration that was not ended
        entry, self._enter_at = self._enter_at or replace(self._whole(self._place), batch=0, dali=b""), None
        self._place = entry
        before = 0
        plan = order.segments(self._share(entry.epoch), self.batch_size)
        for number, pieces in enumerate(plan):
            batches = math.ceil(sum(piece.samples for piece in pieces) / self.batch_size)
            done = max(entry.batch - before, 0)
            if done < batches:
                last = number + 1 == len(plan)
                yield from self._give(entry, number, done, before, last=last)
            before += batches
        self._place = replace(entry, epoch=entry.epoch + 1, batch=0, dali=b"")

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the pipelines' memory; the loader cannot be used afterwards."""
        self._closed = True
        self._shard_files.stop()
        self._ahead.close()
        self._close_segment()
        self._shard_files.close()

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, after the last batch that was given: strings, numbers and dicts."""
        if self._enter_at is not None:
            return self._enter_at.to_state()
        place = self._place if self._segment is None else replace(self._place, dali=self._dali_state())
        return self._whole(place).to_state()

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Let the next iteration go on where `state_dict` was taken, with the batch that followed.

        On another number of processes, or another device, an epoch that was begun cannot be gone on
        with: the next one follows.

        Returns:
            Samples, over all processes, that this leaves out: 0 where it goes on exactly.

        Raises:
            UsageError: the state belongs to another dataset, split, view, seed, global batch, order or
                version of DALI; says which.
        """
        self._place, left_out = self._place.entered_from(state)
        self._enter_at = self._place
        self._close_segment()
        return left_out

    def _give(self, entry: Position, number: int, done: int, before: int, *, last: bool) -> Iterator[Batch]:
        """Yield a segment's batches; `before` were given by those before it."""
        place = Place(entry.epoch, number)
        ready = self._ahead.take(None if done else place)
        self._segment = segment = ready or self._build(place, entry.dali if done else b"", done)
        try:
            segment.start()
            if not last:
                self._ahead.build(Place(entry.epoch, number + 1), self._build)
            elif self._training and entry.epoch + 1 != self._epochs:
                self._ahead.build(Place(entry.epoch + 1, 0), self._build)
            batches = iter(segment)
            while (outputs := self._next(batches, segment)) is not None:
                if segment.all_begun:
                    self._ahead.start()  # the present one is about to leave the cores idle
                self._place = replace(entry, batch=before + segment.done, dali=b"")
                yield outputs
                if self._segment is not segment:
                    raise RuntimeError("another iteration of this loader has begun, or it was closed")
        finally:
            # Else another iteration has taken over, or the interpreter is taking everything down.
            if self._segment is segment and not sys.is_finalizing():
                self._place = replace(self._place, dali=self._dali_state())
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
        place = self.placement
        if not self._training:
            return order.evaluation_share(self._sizes, place.rank, place.world_size)
        return order.training_share(
            self._sizes, self.seed, epoch, place.rank, place.world_size, self.batch_size
        )

    def _build(self, place: Place, checkpoint: bytes = b"", done: int = 0) -> Segment:
        opened = self._shard_files.acquire(
            order.segments(self._share(place.epoch), self.batch_size)[place.number]
        )
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
                raise RunError(
                    f"{self.dataset.url}: DALI cannot read {self.split}: {dali_message(error)}; "
                    f"`alexnet-prep verify {self.dataset.url}` names what is wrong with it"
                ) from error
            raise

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _whole(self, place: Position) -> Position:
        """The same place, but the start of the next epoch for the end of one."""
        at_end = place.batch == len(self) > 0
        return replace(place, epoch=place.epoch + 1, batch=0, dali=b"") if at_end else place

    def _dali_state(self) -> bytes:
        segment = self._segment
        inside = segment is not None and 0 < segment.done < segment.batches
        return segment.state() if segment is not None and inside else b""

    def _content(self) -> dict[str, str]:
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
        return {name: str(value) for name, value in values.items()}

    def _process(self) -> dict[str, str]:
        place = self.placement
        return {"rank": str(place.rank), "world_size": str(place.world_size), "device": place.device}

    def _check_enough(self) -> None:
        if self.samples == 0:
            raise UsageError(f"{self.dataset.url}: the split {self.split!r} holds no samples")
        if self._training and len(self) == 0:
            raise UsageError(
                f"{self.dataset.url}: {self.split} has {self.samples} samples, fewer than one global "
                f"batch of {self.batch_size * self.placement.world_size}; choose a smaller batch_size"
            )


def _labels(digits: Tensor) -> Tensor:
    """ASCII digits, uint8 (B, W), or numbers, int32 (B, 1) → int64 (B,); -1 for bytes that are no digits."""
    if digits.dtype != torch.uint8:
        return digits.flatten().to(torch.int64)
    values = digits.to(torch.int64) - ord("0")
    powers = torch.tensor([10**k for k in reversed(range(digits.shape[1]))])
    return (values * powers).sum(dim=1).where(((values >= 0) & (values <= 9)).all(dim=1), -1)


def _key(row: Tensor) -> str:
    """`…/train-000000.tar:26112:KEY.jpg`, zero padded, → KEY."""
    text = bytes(row.cpu().numpy()).rstrip(b"\0").decode()
    return text.rsplit(":", 1)[1].removesuffix(".jpg")
