"""Models, optimisation and runs. Names resolve on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.classifier import Classifier
    from trainer.distributed import World
    from trainer.evaluation import Evaluation, Metrics, evaluate, evaluate_checkpoints
    from trainer.figures import kernels
    from trainer.loop import Job, Reporter, train
    from trainer.models import ARCHITECTURES, build_model
    from trainer.optim import PaperSGD
    from trainer.predictions import Predictions, read_predictions, write_predictions
    from trainer.recipe import Recipe, load_recipe
    from trainer.run import EpochRow, Progress

_HOME = {
    "ARCHITECTURES": "models",
    "Classifier": "classifier",
    "EpochRow": "run",
    "Evaluation": "evaluation",
    "Job": "loop",
    "Metrics": "evaluation",
    "PaperSGD": "optim",
    "Predictions": "predictions",
    "Progress": "run",
    "Recipe": "recipe",
    "Reporter": "loop",
    "World": "distributed",
    "build_model": "models",
    "evaluate": "evaluation",
    "evaluate_checkpoints": "evaluation",
    "kernels": "figures",
    "load_recipe": "recipe",
    "read_predictions": "predictions",
    "train": "loop",
    "write_predictions": "predictions",
}

__all__ = [
    "ARCHITECTURES",
    "Classifier",
    "EpochRow",
    "Evaluation",
    "Job",
    "Metrics",
    "PaperSGD",
    "Predictions",
    "Progress",
    "Recipe",
    "Reporter",
    "World",
    "build_model",
    "evaluate",
    "evaluate_checkpoints",
    "kernels",
    "load_recipe",
    "read_predictions",
    "train",
    "write_predictions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
