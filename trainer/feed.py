"""The training loader of each epoch, and its place in a resumed run."""

from typing import Any

import torch

from pipeline.dataset import Dataset
from pipeline.loader import Loader
from pipeline.seeds import derive_seed
from trainer.classifier import Classifier, train_view
from trainer.distributed import World
from trainer.recipe import Recipe


class Feed:
    """Gives each epoch its loader: a new one where a stage changes the graph's colour noise.

    `reseeded` is an epoch that goes into the seeds, for runs that go on with another number of
    processes: the split by rank is another, so their streams start anew.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        classifier: Classifier,
        batch_size: int,
        world: World,
        reseeded: int = 0,
    ) -> None:
        self._recipe, self._dataset, self._classifier = recipe, dataset, classifier
        self._batch_size, self._world, self._reseeded = batch_size, world, reseeded
        self._noise_since: int | None = None
        self._loader: Loader | None = None

    def epoch(self, epoch: int) -> Loader:
        """Return the loader for an epoch, counted from 0; its next iteration is that epoch."""
        since = self._first_with_noise_of(epoch)
        if self._loader is None or since != self._noise_since:
            self.close()
            self._noise_since = since
            self._loader = Loader(
                self._dataset,
                "train",
                train_view(self._classifier, self._recipe, self._dataset, epoch),
                self._batch_size,
                placement=self._world.placement,
                seed=derive_seed(self._recipe.seed, "data", since, self._reseeded),
                half=self._world.kind == "gpu" and self._recipe.precision != "float32",
                channels_last=self._recipe.channels_last,
            )
        return self._loader

    def rank_state(self) -> dict[str, Any]:
        """This rank's loader state and random generators, between two epochs."""
        assert self._loader is not None
        state: dict[str, Any] = {"loader": self._loader.state_dict(), "rng": torch.get_rng_state()}
        if self._world.kind == "gpu":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        return state

    def restore(self, state: dict[str, Any], finished_epochs: int) -> None:
        """Continue the data after `finished_epochs` epochs from `rank_state`.

        Raises:
            UsageError: the state belongs to other data or settings.
        """
        self.epoch(finished_epochs - 1).load_state_dict(state["loader"])

    def restore_generators(self, state: dict[str, Any]) -> None:
        """Put this rank's random generators where `rank_state` found them."""
        torch.set_rng_state(state["rng"])
        if self._world.kind == "gpu":
            torch.cuda.set_rng_state(state["cuda_rng"])

    def close(self) -> None:
        """Free the loader's memory."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_with_noise_of(self, epoch: int) -> int:
        """First epoch of the unbroken stretch with this epoch's colour noise."""
        noise = self._recipe.stage_at(epoch).colour_noise
        while epoch > 0 and self._recipe.stage_at(epoch - 1).colour_noise == noise:
            epoch -= 1
        return epoch
