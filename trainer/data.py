"""Loaders of a run: training data of each epoch, validation data, and synthetic batches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from pipeline.arguments import COUNT, check_record
from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.loader.live_shards import ReadOptions
from pipeline.loader.loader import Batch, Loader
from pipeline.loader.placement import BackendName, Placement, choose_backend, has_dali, refuse_missing_dali
from pipeline.loader.views import EvalView, TrainView
from pipeline.seeds import derive_seed
from pipeline.text import in_bytes, number_of
from trainer.distributed.env import DistEnv
from trainer.models.classifier import Classifier, train_view
from trainer.recipe import Recipe

EVALUATION_BATCH = 256
"""Most images in a batch of an evaluation, whatever the number of processes."""


class Choice(NamedTuple):
    """Backend of a process's loaders.

    Attributes:
        backend: Its name.
        placement: Rank, threads and device.
        why: Why it was chosen, in a few words.
    """

    backend: BackendName
    placement: Placement
    why: str


@dataclass(frozen=True)
class LoaderOptions:
    """Where and how images are loaded. None of these options changes which samples a batch has.

    Attributes:
        backend: What makes batches; "auto" lets `pipeline.choose_backend` choose it.
        decode_device: Device on which DALI decodes: "auto" for the one that trains.
        threads: Number of decoding threads per process, None for an equal share of the host's cores.
        workers: Number of worker processes among which the thread backend divides them, 0 for none; None
            for as many as `pipeline.loader.placement.workers_for` says.
        access: How shards are read.

    Raises:
        UsageError: `backend` or `decode_device` is another word, `threads` is below 1, or `workers` below 0.
    """

    backend: BackendName | Literal["auto"] = "auto"
    decode_device: Literal["auto", "cpu", "gpu"] = "auto"
    threads: int | None = None
    workers: int | None = None
    access: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        check_record(self, threads=COUNT, workers=(0, math.inf))

    def choose(self, env: DistEnv) -> Choice:
        """Choose the backend of a process's loaders.

        Raises:
            UsageError: The images are to be decoded on a GPU, but the process trains on the CPU or the
                backend does not; or DALI is asked for, and it is not installed.
        """
        place = replace(env.placement, threads=self.threads, workers=self.workers)
        backend, why = self.backend, f"--backend {self.backend} says"
        if backend == "auto":
            capability = torch.cuda.get_device_capability(env.device) if env.kind == "gpu" else None
            backend, why = choose_backend(place.thread_count, capability, dali=has_dali())
            if self.decode_device != "auto" and has_dali():
                backend, why = "dali", f"--decode-device {self.decode_device} says"
        if backend == "dali":
            refuse_missing_dali()
        if self.decode_device == "gpu" and (env.kind == "cpu" or backend == "threads"):
            found = "these are CPU processes" if env.kind == "cpu" else f"threads decode on the CPU: {why}"
            raise UsageError(f"--decode-device gpu, but {found}; leave it out")
        moved = backend == "dali" and self.decode_device == "cpu"  # by the trainer, whole
        gpu = env.gpu if env.kind == "gpu" and not moved else None
        return Choice(backend, replace(place, gpu=gpu), why)


def open_loader_of(
    env: DistEnv,
    loader_options: LoaderOptions,
    dataset: Dataset,
    split: str,
    view: TrainView | EvalView,
    global_batch: int,
    **settings: Any,
) -> Loader:
    """Open the loader of a process.

    Args:
        env: Rank and device of this process.
        loader_options: Where and how images are loaded.
        dataset: As in `Loader`.
        split: As in `Loader`.
        view: As in `Loader`.
        global_batch: As in `Loader`.
        **settings: Other arguments of `Loader`.
    """
    backend, placement, _ = loader_options.choose(env)
    return Loader(
        dataset,
        split,
        view,
        global_batch,
        backend=backend,
        placement=placement,
        access=loader_options.access,
        **settings,
    )


def validation_loader(
    recipe: Recipe, dataset: Dataset, env: DistEnv, loader_options: LoaderOptions
) -> Loader:
    """Open a loader of center crops of the validation split.

    Args:
        recipe: Gives crop, batch size and memory format.
        dataset: The opened dataset.
        env: Rank and device of this process.
        loader_options: Where and how images are loaded.
    """
    view = EvalView("center", recipe.crop)
    size = min(recipe.batch_size, EVALUATION_BATCH)
    return open_loader_of(env, loader_options, dataset, "val", view, size, channels_last=recipe.channels_last)


class RepeatedBatch:
    """A loader whose epochs repeat one batch.

    Attributes:
        epoch: Current epoch, counted from 0; between two iterations, the epoch that comes next.
        batch: Number of batches of the current epoch yielded so far.
    """

    def __init__(self, batch: Batch, length: int) -> None:
        """Repeat `batch` `length` times per epoch."""
        self._one, self._length = batch, length
        self.epoch = self.batch = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batch `len(self)` times."""
        for number in range(self._length):
            self.batch = number + 1
            yield self._one
        self.epoch, self.batch = self.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of `epoch`, counted from 0."""
        self.epoch, self.batch = epoch, 0


def first_fetch(loader: Loader | RepeatedBatch) -> str:
    """Say which shards the first batch waits for, such as "fetching 16 shards, 2.1 GB, for the first batch".

    Returns:
        A line for the log; "" if no shard is fetched.
    """
    if isinstance(loader, RepeatedBatch) or not (shards := loader.to_fetch()):
        return ""
    each = " of each process" if loader.placement.world_size > 1 else ""
    size = in_bytes(sum(shard.bytes for shard in shards))
    return f"fetching {number_of(len(shards), 'shard')}, {size}, for the first batch{each}"


def noise(recipe: Recipe, batch_size: int, classes: int, env: DistEnv) -> Batch:
    """Draw a batch of random images, with about the spread of real pixels, and random labels.

    Args:
        recipe: Gives seed, crop, scale and memory format of the images.
        batch_size: Images in the batch.
        classes: Number of classes.
        env: Rank, which changes the seed, and device of the images.
    """
    generator = torch.Generator().manual_seed(recipe.seed + env.rank)
    images = torch.randn(batch_size, 3, recipe.crop, recipe.crop, generator=generator)
    if recipe.std == "none" or recipe.precision == "float64":  # not divided by std, or not yet
        images.mul_(64.0)  # near ImageNet's deviation
    if recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch_size,), generator=generator)
    return Batch(images.to(env.device), labels, [], np.arange(batch_size))


class TrainData:
    """Training data of a run: opens the loader of each epoch, and a new one when color noise changes."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        classifier: Classifier,
        batch_size: int,
        env: DistEnv,
        loader_options: LoaderOptions | None = None,
        one_batch: str = "",
    ) -> None:
        """Note the arguments; the first call of `epoch` opens a loader.

        Args:
            recipe: Gives augmentation, batch size, seed and stages.
            dataset: The opened dataset.
            classifier: Gives mean and std of the training view; its divisor is set with each new view.
            batch_size: Images per batch of this process.
            env: Rank and device of this process.
            loader_options: Where and how images are loaded.
            one_batch: "--synthetic" or "--overfit-batch" to train on one repeated batch, "" for all data.
        """
        self._recipe, self._dataset, self._classifier = recipe, dataset, classifier
        self._batch_size, self._env, self._loader_options = batch_size, env, loader_options or LoaderOptions()
        self._one_batch = one_batch
        self._noise: str | None = None
        self._loader: Loader | None = None
        self._one: RepeatedBatch | None = None

    def epoch(self, epoch: int) -> Loader | RepeatedBatch:
        """Return the loader whose next iteration is `epoch`, counted from 0."""
        if not self._one_batch:
            return self._of_data(epoch)
        if self._one is None:
            self._one = self._make_one(self._of_data(epoch))
            self.close()
        if self._one.epoch != epoch:
            self._one.set_epoch(epoch)
        return self._one

    def _make_one(self, loader: Loader) -> RepeatedBatch:
        if self._one_batch == "--overfit-batch":
            batch = next(iter(loader))
            return RepeatedBatch(replace(batch, images=batch.images.clone()), len(loader))
        classes = len(self._dataset.classes)
        return RepeatedBatch(noise(self._recipe, self._batch_size, classes, self._env), len(loader))

    def _of_data(self, epoch: int) -> Loader:
        colors = self._recipe.stage_at(epoch).color_noise
        if self._loader is None or colors != self._noise:
            self.close()
            self._noise = colors
            self._loader = open_loader_of(
                self._env,
                self._loader_options,
                self._dataset,
                "train",
                train_view(self._classifier, self._recipe, self._dataset, epoch),
                self._recipe.batch_size,
                seed=derive_seed(self._recipe.seed, "data"),
                half=self._env.kind == "gpu" and self._recipe.precision != "float32",
                channels_last=self._recipe.channels_last,
            )
        if self._loader.epoch != epoch:
            self._loader.set_epoch(epoch)
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data, the same on every process."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> None:
        """Resume the data at a position that any number of processes saved.

        Args:
            state: What `state_dict` returned.
            epoch: Epoch, counted from 0, in which or at whose start the state was saved.

        Raises:
            UsageError: The state belongs to other data or settings, or cannot be read.
        """
        self._of_data(epoch).load_state_dict(state)

    def close(self) -> None:
        """Free the loader's memory."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __enter__(self) -> "TrainData":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
