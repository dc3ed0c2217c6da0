"""Batches of a prepared dataset, each sample exactly as often as it should be.

Shapes: B batch, V views (10 for ten crops, else absent), C = 3, S crop.
"""

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nvidia.dali.plugin.pytorch as dali_torch
import torch
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from torch import Tensor

from pipeline import graph
from pipeline.augment import EvalView, TrainView, check_crop
from pipeline.cores import usable_cores
from pipeline.dataset import Dataset
from pipeline.errors import RunError, UsageError
from pipeline.seeds import derive_seed


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


@dataclass(frozen=True)
class Placement:
    """Which process of how many this is, and where its batches shall be.

    Attributes:
        rank: global rank, 0..world - 1.
        world: number of processes.
        device: "cpu", or "gpu" for decoding and augmentation on CUDA device `local_rank`.
        local_rank: index of the process on its host.
        threads: DALI's CPU threads, or None for this host's cores shared among `local_world`.
        local_world: processes on this host.
    """

    rank: int = 0
    world: int = 1
    device: graph.Device = "cpu"
    local_rank: int = 0
    threads: int | None = None
    local_world: int = 1

    @property
    def thread_count(self) -> int:
        """DALI's CPU threads in this process."""
        return self.threads or max(1, usable_cores() // self.local_world)


class Loader:
    """An iterator over epochs of batches; close it, or leave its `with` block, to free DALI's memory.

    A `TrainView` gives training epochs: shuffled, each sample at most once, every batch full, and all
    ranks equally many batches; only the remainder below a global batch is left out. An `EvalView`
    gives each sample exactly once over all ranks, in order, with a smaller last batch.

    >>> with Loader(Dataset.open("imagenet"), "train", TrainView(), 128) as loader:  # doctest: +SKIP
    ...     for batch in loader:
    ...         step(batch.images, batch.labels)
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
        half: bool = False,
        channels_last: bool = False,
        keys: bool = False,
    ) -> None:
        """Build the pipeline.

        Args:
            dataset: an opened dataset.
            split: "train", "val" or "test".
            view: what is made of each picture.
            batch_size: samples per batch of this process.
            placement: which process this is; alone on the CPU by default.
            seed: of order and augmentation. Ranks share the order of tars and differ in all else.
            half: float16 images instead of float32.
            channels_last: images are stored in torch's channels-last memory format.
            keys: fill `Batch.keys`.

        Raises:
            UsageError: no such split, a crop larger than the pictures, or for training fewer samples
                than one global batch.
        """
        self.dataset = dataset
        self.split = split
        self.view = view
        self.batch_size = batch_size
        self.placement = placement or Placement()
        self.seed = seed
        self._output = graph.OutputSettings(half, channels_last, keys)
        check_crop(view.crop, dataset.image.size)
        self.samples = dataset.samples(split)
        self._training = isinstance(view, TrainView)
        self._check_enough()
        # DALI wants at least one sample a rank; for evaluation the surplus ranks get nothing.
        self._shards = min(self.placement.world, self.samples)
        self._iterator: Any = None
        self._started = False
        if self.placement.rank < self._shards:
            self._iterator = self._build(None)

    def __len__(self) -> int:
        """Batches in an epoch of this rank: of training exactly, of evaluation at most."""
        if self._training:
            return self.samples // (self.placement.world * self.batch_size)
        return self._pipeline_batches

    @property
    def _pipeline_batches(self) -> int:
        """Batches that DALI makes in an epoch, the same on every rank."""
        return math.ceil(math.ceil(self.samples / self._shards) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch; one abandoned halfway starts over at the next call.

        Raises:
            RunError: DALI could not read or decode a sample.
        """
        if self._iterator is None:
            return
        if self._started:
            self._restart()
        self._epoch_start = self._checkpoint()
        self._started = True
        try:
            for number, output in enumerate(self._run_pipeline()):
                # A training epoch ends with its last full global batch; the rest is read and
                # dropped, because DALI can only be reset at the end of its data.
                if (not self._training or number < len(self)) and len(output["labels"]):
                    yield self._batch(output)
        except RuntimeError as error:
            raise RunError(
                f"the loader stopped in {self.dataset.root / self.split}: {_first_line(error)}; a shard "
                f"may have been damaged after it was written: `alexnet-prep verify {self.dataset.root}` tells"
            ) from error
        self._iterator.reset()
        self._started = False

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the pipeline's memory; the loader cannot be used afterwards."""
        self._iterator = None

    def state_dict(self) -> dict[str, str]:
        """State between two epochs: DALI's own, and a fingerprint of what it belongs to."""
        return {**self._fingerprint(), "dali": self._checkpoint()}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Continue where `state_dict` was taken: the next epoch is the one that followed it.

        Raises:
            UsageError: the state belongs to another dataset, split, seed, batch or process count.
        """
        differences = [
            f"{name} was {state.get(name)}, now {value}"
            for name, value in self._fingerprint().items()
            if state.get(name) != value
        ]
        if differences:
            raise UsageError(
                f"the saved data position belongs to another run: {'; '.join(differences)}; resume with "
                "the same data, recipe and number of processes"
            )
        if self._iterator is not None:
            self._iterator = self._build(state["dali"])
            self._started = False

    def _fingerprint(self) -> dict[str, str]:
        values = {
            "dataset": self.dataset.fingerprint,
            "split": self.split,
            "batch_size": self.batch_size,
            "rank": self.placement.rank,
            "world": self.placement.world,
            "device": self.placement.device,
            "seed": self.seed,
        }
        return {name: str(value) for name, value in values.items()}

    def _check_enough(self) -> None:
        if self.samples == 0:
            raise UsageError(f"{self.dataset.root}: the split {self.split!r} holds no samples")
        if self._training and len(self) == 0:
            raise UsageError(
                f"{self.dataset.root}: {self.split} has {self.samples} samples, fewer than one global "
                f"batch of {self.batch_size * self.placement.world}; choose a smaller batch_size"
            )

    def _build(self, checkpoint: str | None) -> Any:
        place = self.placement
        reader = graph.ReaderSettings(
            tars=[str(path) for path in self.dataset.tars(self.split)],
            indexes=[str(path) for path in self.dataset.indexes(self.split)],
            label_width=self.dataset.manifest.label_width,
            adopted=self.dataset.manifest.adopted,
            shard_id=place.rank,
            num_shards=self._shards,
            shuffle=self._training,
            order_seed=derive_seed(self.seed, "order"),
        )
        pipe = graph.build(
            reader,
            self.view,
            self.dataset.image,
            place.device,
            self._output,
            batch_size=self.batch_size,
            num_threads=place.thread_count,
            device_id=place.local_rank if place.device == "gpu" else None,
            seed=derive_seed(self.seed, "rank", place.rank),
            checkpoint=base64.b64decode(checkpoint) if checkpoint else None,
        )
        names = ["images", "labels", "keys"] if self._output.keys else ["images", "labels"]
        return dali_torch.DALIGenericIterator(
            [pipe],
            names,
            reader_name=graph.READER,
            last_batch_policy=LastBatchPolicy.PARTIAL,
            auto_reset=False,
            prepare_first_batch=False,
        )

    def _run_pipeline(self) -> Iterator[dict[str, Tensor]]:
        seen = 0
        for _ in range(self._pipeline_batches):  # counted: a restored pipeline may not signal the end
            output = next(self._iterator)[0]
            seen += len(output["labels"])
            yield output
        share = self.samples // self._shards
        if seen not in (share, share + (self.samples % self._shards > 0)):
            raise RunError(
                f"this process read {seen} of {self.samples} samples of {self.split}, but its share is "
                f"{share}; the indexes do not hold what the manifest says: `alexnet-prep verify "
                f"{self.dataset.root}` names what differs"
            )

    def _batch(self, output: dict[str, Tensor]) -> Batch:
        images = output["images"]
        if self._output.channels_last:
            images = images.movedim(-1, -3)
        keys = [_key(row) for row in output["keys"]] if self._output.keys else []
        return Batch(images, output["labels"].flatten().to(torch.int64), keys)

    def _checkpoint(self) -> str:
        if self._iterator is None:
            return ""
        return base64.b64encode(self._iterator.checkpoints()[0]).decode()

    def _restart(self) -> None:
        self._iterator = self._build(self._epoch_start)


def _key(row: Tensor) -> str:
    """`…/train-000000.tar:26112:KEY.jpg`, zero padded, → KEY."""
    text = bytes(row.cpu().numpy()).rstrip(b"\0").decode()
    return text.rsplit(":", 1)[1].removesuffix(".jpg")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if line.startswith("[")] or lines
    return useful[0][:300] if useful else type(error).__name__
