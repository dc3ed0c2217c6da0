"""Models, optimisation and runs. Names resolve on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.classifier import Classifier
    from trainer.distributed import World
    from trainer.evaluation import ClassMetrics, Evaluation, evaluate, evaluate_checkpoints
    from trainer.figures import kernels
    from trainer.foreign import Foreign, Preprocessing
    from trainer.labels import LabelScore, LabelSet, read_labels, read_real_labels, score_labels
    from trainer.loop import Job, Reporter, train
    from trainer.metrics import Metrics
    from trainer.models import ARCHITECTURES, build_model
    from trainer.optim import PaperSGD
    from trainer.predictions import Predictions, read_predictions, write_predictions
    from trainer.recipe import Recipe, load_recipe
    from trainer.run import EpochRow, Progress
    from trainer.summary import markdown, write_confusion, write_json

_HOME = {
    "ARCHITECTURES": "models",
    "ClassMetrics": "evaluation",
    "Classifier": "classifier",
    "EpochRow": "run",
    "Evaluation": "evaluation",
    "Foreign": "foreign",
    "Job": "loop",
    "LabelScore": "labels",
    "LabelSet": "labels",
    "Metrics": "metrics",
    "PaperSGD": "optim",
    "Predictions": "predictions",
    "Preprocessing": "foreign",
    "Progress": "run",
    "Recipe": "recipe",
    "Reporter": "loop",
    "World": "distributed",
    "write_json": "summary",
    "build_model": "models",
    "evaluate": "evaluation",
    "evaluate_checkpoints": "evaluation",
    "kernels": "figures",
    "load_recipe": "recipe",
    "markdown": "summary",
    "read_labels": "labels",
    "read_predictions": "predictions",
    "read_real_labels": "labels",
    "score_labels": "labels",
    "train": "loop",
    "write_confusion": "summary",
    "write_predictions": "predictions",
}

__all__ = [
    "ARCHITECTURES",
    "ClassMetrics",
    "Classifier",
    "EpochRow",
    "Evaluation",
    "Foreign",
    "Job",
    "LabelScore",
    "LabelSet",
    "Metrics",
    "PaperSGD",
    "Predictions",
    "Preprocessing",
    "Progress",
    "Recipe",
    "Reporter",
    "World",
    "build_model",
    "evaluate",
    "evaluate_checkpoints",
    "kernels",
    "load_recipe",
    "markdown",
    "read_labels",
    "read_predictions",
    "read_real_labels",
    "score_labels",
    "train",
    "write_confusion",
    "write_json",
    "write_predictions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
