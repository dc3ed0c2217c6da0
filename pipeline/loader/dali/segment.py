"""A segment: one DALI pipeline, run from its first batch to its last and no further.

DALI's own iterator reads on into the next epoch. This one schedules exactly the batches of a segment, so
that no batch is decoded in vain.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.dataset.manifest import Manifest
from pipeline.errors import RunError
from pipeline.host import trim_heap
from pipeline.loader.dali import graph
from pipeline.loader.placement import Placement
from pipeline.loader.shard_files import OpenShards
from pipeline.loader.views import EvalView, TrainView

_AHEAD = 2
"""Batches that DALI decodes ahead of the one in use (its own default)."""


def dali_message(error: Exception) -> str:
    """Extract the first line of a DALI error that says what is wrong, without DALI's stack trace."""
    text = str(error).partition("encountered:")[2] or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [line for line in lines if line.startswith("[")] or lines
    return useful[0][:300] if useful else type(error).__name__


class RawSample(NamedTuple):
    """A sample's stored bytes.

    Attributes:
        shard: Name of the shard in the dataset.
        tar: Path or URL from which it was read.
        key: Key of the sample.
        offset: Byte offset of the image in the tar.
        jpeg: Bytes of the image.
        label: Bytes of the label.
    """

    shard: str
    tar: str
    key: str
    offset: int
    jpeg: bytes
    label: bytes


class Segment:
    """Iterates over the batches of some pieces of a split, as tuples of tensors on the placement's device.

    Attributes:
        batches: Number of batches in the segment.
        done: Number of batches yielded so far.
    """

    def __init__(
        self,
        opened: OpenShards,
        manifest: Manifest,
        view: TrainView | EvalView,
        output: graph.OutputSettings,
        placement: Placement,
        batch_size: int,
        seed: int,
        buffer: int,
        checkpoint: bytes | None = None,
        done: int = 0,
    ) -> None:
        """Build the pipeline. Decoding begins with `start` or the first batch.

        Args:
            opened: Tars and indexes of the pieces; `close` releases them.
            manifest: Manifest of the dataset.
            view: Crops, flips and normalization of each image.
            output: Format of the images.
            placement: Device and threads that decode and augment.
            batch_size: Samples per batch; the last batch may have fewer.
            seed: Seed of order and augmentation.
            buffer: Samples in the shuffle buffer, 0 to keep the order of the pieces.
            checkpoint: `state` of an earlier segment with the same arguments, to resume it; None to start
                at the first batch.
            done: Number of batches that the earlier segment had yielded.

        Raises:
            RunError: The indexes list another number of samples than the manifest.
            RuntimeError: DALI cannot build the pipeline or open a tar.
        """
        self.batches = math.ceil(opened.samples / batch_size)
        self.done = done
        self._opened = opened
        self._batch_size = batch_size
        self._last_batch = opened.samples - (self.batches - 1) * batch_size
        self._placement = placement
        self._reader = graph.ReaderSettings(
            opened.tars,
            opened.indexes,
            manifest.label_width,
            manifest.adopted,
            seed,
            min(buffer, opened.samples),
            opened.mmap,
        )
        # DALI's first run fills its whole prefetch queue, so the queue must not exceed what is left.
        self._queue = max(1, min(_AHEAD, self.batches - done))
        self._scheduled = 0
        self._pipe: Any = graph.build(
            self._reader,
            view,
            manifest.image,
            placement,
            output,
            batch_size=batch_size,
            num_threads=placement.thread_count,
            device_id=placement.device_id,
            seed=seed,
            prefetch_queue_depth=self._queue,
            checkpoint=checkpoint,
        )
        self._pipe.build()
        found = self._pipe.reader_meta(graph.READER)["epoch_size"]
        if found != opened.samples:
            raise RunError(
                f"the indexes of {opened.tars[0]} and the tars after it list {found} samples, but the "
                f"manifest says {opened.samples}; `alexnet-prep verify` on the dataset lists all differences"
            )

    @property
    def all_begun(self) -> bool:
        """Whether DALI has begun the last batch, so that no work is left to schedule."""
        return self._scheduled >= self.batches

    def start(self) -> None:
        """Start decoding the first batches in the background."""
        if not self._scheduled:
            self._pipe.schedule_run()
            self._scheduled = self.done + self._queue

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the remaining batches.

        Raises:
            RuntimeError: DALI cannot read or decode a sample; `done` is then the failing batch's number.
        """
        device = self._placement.device_id
        while self.done < self.batches:
            self.start()
            stream = None if device is None else torch.cuda.current_stream(device)
            tensors = [from_dlpack(output.as_tensor()) for output in self._pipe.outputs(stream)]
            if self._scheduled < self.batches:
                self._pipe.schedule_run()
                self._scheduled += 1
            self.done += 1
            if self.done == self.batches:  # DALI pads the last batch
                tensors = [tensor[: self._last_batch] for tensor in tensors]
            yield tuple(tensors)

    def state(self) -> bytes:
        """Return DALI's checkpoint after the last batch yielded; empty before the first and at the end."""
        return bytes(self._pipe.checkpoint()) if 0 < self.done < self.batches else b""

    def raw_batch(self, number: int) -> list[RawSample]:
        """Read the stored bytes of batch `number`, counted from 0, again.

        Raises:
            RuntimeError: DALI cannot read them.
        """
        pipe = graph.raw(self._reader, batch_size=self._batch_size, device_id=None)
        for _ in range(number + 1):
            outputs = pipe.run()
        names = dict(zip(self._opened.tars, self._opened.names, strict=True))
        found = []
        for jpeg, label, source in zip(*(map(bytes, output) for output in outputs), strict=True):
            path, offset, member = source.decode().rsplit(":", 2)
            found.append(RawSample(names[path], path, member.removesuffix(".jpg"), int(offset), jpeg, label))
        return found

    def problem(self, jpeg: bytes) -> str:
        """Decode one image on this segment's device; return DALI's error message, or "" if it decodes."""
        pipe = graph.decoded(self._placement, device_id=self._placement.device_id)
        pipe.feed_input("jpeg", [np.frombuffer(jpeg, np.uint8)])
        try:
            pipe.run()
        except RuntimeError as error:
            return dali_message(error)
        return ""

    def close(self) -> None:
        """Free DALI's memory and release the tars."""
        if self._pipe is not None:
            self._pipe = None
            self._opened.release()
            trim_heap()
