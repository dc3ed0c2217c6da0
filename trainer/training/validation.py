"""Validation of a run: when it is due, and what it measures."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pipeline.dataset.dataset import Dataset
from trainer.data import validation_loader
from trainer.distributed.env import DistEnv, share_buffers
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.metrics import Metrics
from trainer.models.classifier import Classifier
from trainer.optim.ema import Ema
from trainer.runs import checkpoint
from trainer.runs.records import Progress
from trainer.training.options import TrainJob


class Validator:
    """Evaluates a run's network, with the averaged weights where there are any, on center crops of "val".

    Leaving the `with` block frees its loader.
    """

    def __init__(
        self,
        job: TrainJob,
        dataset: Dataset,
        env: DistEnv,
        classifier: Classifier,
        ema_weights: Ema | None,
    ) -> None:
        """Open the loader, unless the run does not validate.

        Args:
            job: The run's job.
            dataset: Its dataset, opened.
            env: This process's environment.
            classifier: The network in training.
            ema_weights: The average of its weights, or None.
        """
        self._options, self._env = job.validation, env
        self._classifier, self._ema_weights = classifier, ema_weights
        self._loader = None
        if job.validates(dataset):
            self._loader = validation_loader(job.recipe, dataset, env, job.loader_options)

    def is_due(self, progress: Progress) -> bool:
        """Whether to validate after this step within an epoch."""
        every = self._options.every_steps
        return every is not None and progress.steps % every == 0

    def is_hopeless(self, progress: Progress) -> bool:
        """Whether the run's patience is over."""
        patience = self._options.patience
        return patience is not None and progress.unimproved >= patience

    def measure(self, on_progress: Callable[[], None]) -> Metrics | None:
        """Validate; every process must call this. None in a run without validation.

        Args:
            on_progress: Called after each batch.
        """
        if self._loader is None:
            return None
        share_buffers(self._classifier)
        with self._averaged():
            if self._ema_weights:
                share_buffers(self._classifier)
            return evaluate([self._classifier], self._loader, self._env, on_progress=lambda *_: on_progress())

    def best(self, copy: Callable[[dict[str, Any]], None]) -> None:
        """Call `copy` with the content of a checkpoint of the weights that `measure` evaluates."""
        with self._averaged():
            copy(checkpoint.content_of(self._classifier, averaged=bool(self._ema_weights)))

    def _averaged(self) -> AbstractContextManager[None]:
        return self._ema_weights.in_place() if self._ema_weights else nullcontext()

    def __enter__(self) -> "Validator":
        return self

    def __exit__(self, *_: object) -> None:
        if self._loader is not None:
            self._loader.close()
