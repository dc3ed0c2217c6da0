"""Loaders of a run: training data of each epoch, validation data, and synthetic batches."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from pipeline.arguments import COUNT, check_record
from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.loader.loader import Batch, Loader
from pipeline.loader.placement import Device, Placement, choose_device
from pipeline.loader.shard_files import ReadOptions
from pipeline.loader.views import EvalView
from pipeline.seeds import derive_seed
from trainer.distributed.env import DistEnv
from trainer.models.classifier import Classifier, train_view
from trainer.recipe import Recipe


@dataclass(frozen=True)
class LoaderOptions:
    """Where and how images are loaded. None of these options changes which samples a batch has.

    Attributes:
        device: Device that decodes and augments; "auto" lets `pipeline.choose_device` choose it.
        threads: Number of DALI's CPU threads per process, None for an equal share of the host's cores.
        access: How shards are read.

    Raises:
        UsageError: `device` is another word, or `threads` is below 1.
    """

    device: Device | Literal["auto"] = "auto"
    threads: int | None = None
    access: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        check_record(self, threads=COUNT)

    def placement(self, env: DistEnv) -> Placement:
        """Return the placement of a process's loaders.

        Raises:
            UsageError: `device` needs a GPU, but the process trains on the CPU.
        """
        place = replace(env.placement, threads=self.threads)
        if env.kind == "cpu":
            if self.device not in ("auto", "cpu"):
                raise UsageError(
                    f"--placement {self.device} makes batches on a GPU, but these are CPU processes; "
                    "leave it out"
                )
            return place
        if self.device == "auto":
            capability = torch.cuda.get_device_capability(env.device)
            return replace(place, device=choose_device(place.thread_count, capability))
        return replace(place, device=self.device)


def validation_loader(
    recipe: Recipe, dataset: Dataset, batch_size: int, env: DistEnv, loader_options: LoaderOptions
) -> Loader:
    """Open a loader of center crops of the validation split.

    Args:
        recipe: Gives crop and memory format.
        dataset: The opened dataset.
        batch_size: Images per batch of this process.
        env: Rank and device of this process.
        loader_options: Where and how images are loaded.
    """
    return Loader(
        dataset,
        "val",
        EvalView("center", recipe.crop),
        batch_size,
        placement=loader_options.placement(env),
        channels_last=recipe.channels_last,
        access=loader_options.access,
    )


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
    images = images if recipe.std == "channel" else images.mul_(64.0)  # near ImageNet's deviation
    if recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images.to(env.device), torch.randint(classes, (batch_size,), generator=generator), [])


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
            recipe: Gives augmentation, seed, shuffle buffer and stages.
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
            self._loader = Loader(
                self._dataset,
                "train",
                train_view(self._classifier, self._recipe, self._dataset, epoch),
                self._batch_size,
                placement=self._loader_options.placement(self._env),
                seed=derive_seed(self._recipe.seed, "data"),
                shuffle_buffer=self._recipe.shuffle_buffer,
                half=self._env.kind == "gpu" and self._recipe.precision != "float32",
                channels_last=self._recipe.channels_last,
                access=self._loader_options.access,
                epochs=self._last_with(colors, epoch),
            )
        if self._loader.epoch != epoch:
            self._loader.set_epoch(epoch)
        return self._loader

    def _last_with(self, colors: str | None, epoch: int) -> int:
        """Return the first epoch after `epoch` with other color noise, or the number of epochs."""
        epochs = range(epoch, self._recipe.epochs)
        return next((e for e in epochs if self._recipe.stage_at(e).color_noise != colors), epochs.stop)

    def rank_state(self) -> dict[str, Any]:
        """Return this rank's position in the data ("loader") and state of its random generators."""
        position = {} if self._loader is None else self._loader.state_dict()
        state: dict[str, Any] = {"loader": position, "rng": torch.get_rng_state()}
        if self._env.kind == "gpu":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        return state

    def restore(self, state: dict[str, Any], epoch: int) -> int:
        """Resume the data at the position in a `rank_state`.

        Args:
            state: What `rank_state` returned.
            epoch: Epoch, counted from 0, in which or at whose start the state was saved.

        Returns:
            Number of samples, over all processes, that are skipped: the rest of a partly read epoch if the
            number of processes or the device has changed, else 0. The next epoch then follows.

        Raises:
            UsageError: The state belongs to other data or settings, or cannot be read.
        """
        return self._of_data(epoch).load_state_dict(state["loader"])

    def restore_generators(self, state: dict[str, Any]) -> None:
        """Set this rank's random generators to their state in a `rank_state`."""
        torch.set_rng_state(state["rng"])
        if self._env.kind == "gpu":
            torch.cuda.set_rng_state(state["cuda_rng"])

    def close(self) -> None:
        """Free the loader's memory."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __enter__(self) -> "TrainData":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
