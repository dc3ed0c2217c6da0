"""Models, optimisation and runs. Names resolve on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.callbacks.base import Reporter
    from trainer.distributed.env import World
    from trainer.evaluation.evaluate import ClassMetrics, Evaluation, evaluate, evaluate_checkpoints
    from trainer.evaluation.label_sets import (
        LabelScore,
        LabelSet,
        read_labels,
        read_real_labels,
        score_labels,
    )
    from trainer.evaluation.metrics import Metrics
    from trainer.evaluation.predictions import Predictions, read_predictions, write_predictions
    from trainer.evaluation.results import markdown, write_confusion, write_json
    from trainer.figures.confusion import draw_confusion
    from trainer.figures.curves import draw_curves
    from trainer.figures.filters import draw_kernels, draw_maps, draw_saliency
    from trainer.figures.predictions import draw_neighbours, draw_predictions
    from trainer.inference.neighbors import Neighbours, find_neighbours, nearest, some_predictions
    from trainer.models.alexnet import ARCHITECTURES, build_model
    from trainer.models.classifier import Classifier
    from trainer.optim.optimizers import PaperSGD
    from trainer.recipe import Recipe, load_recipe
    from trainer.report.page import write_report
    from trainer.runs.external_weights import Foreign, Preprocessing
    from trainer.runs.load_model import Trained, open_trained
    from trainer.runs.records import EpochRow, Progress
    from trainer.training.options import Job, Outcome
    from trainer.training.trainer import train

_HOME = {
    "ARCHITECTURES": "models.alexnet",
    "ClassMetrics": "evaluation.evaluate",
    "Classifier": "models.classifier",
    "EpochRow": "runs.records",
    "Evaluation": "evaluation.evaluate",
    "Foreign": "runs.external_weights",
    "Job": "training.options",
    "LabelScore": "evaluation.label_sets",
    "LabelSet": "evaluation.label_sets",
    "Metrics": "evaluation.metrics",
    "Neighbours": "inference.neighbors",
    "PaperSGD": "optim.optimizers",
    "Predictions": "evaluation.predictions",
    "Preprocessing": "runs.external_weights",
    "Progress": "runs.records",
    "Recipe": "recipe",
    "Outcome": "training.options",
    "Reporter": "callbacks.base",
    "Trained": "runs.load_model",
    "World": "distributed.env",
    "build_model": "models.alexnet",
    "draw_confusion": "figures.confusion",
    "draw_curves": "figures.curves",
    "draw_kernels": "figures.filters",
    "draw_maps": "figures.filters",
    "draw_neighbours": "figures.predictions",
    "draw_predictions": "figures.predictions",
    "draw_saliency": "figures.filters",
    "evaluate": "evaluation.evaluate",
    "evaluate_checkpoints": "evaluation.evaluate",
    "find_neighbours": "inference.neighbors",
    "load_recipe": "recipe",
    "markdown": "evaluation.results",
    "nearest": "inference.neighbors",
    "open_trained": "runs.load_model",
    "read_labels": "evaluation.label_sets",
    "read_predictions": "evaluation.predictions",
    "read_real_labels": "evaluation.label_sets",
    "score_labels": "evaluation.label_sets",
    "some_predictions": "inference.neighbors",
    "train": "training.trainer",
    "write_confusion": "evaluation.results",
    "write_json": "evaluation.results",
    "write_predictions": "evaluation.predictions",
    "write_report": "report.page",
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
    "Neighbours",
    "Outcome",
    "PaperSGD",
    "Predictions",
    "Preprocessing",
    "Progress",
    "Recipe",
    "Reporter",
    "Trained",
    "World",
    "build_model",
    "draw_confusion",
    "draw_curves",
    "draw_kernels",
    "draw_maps",
    "draw_neighbours",
    "draw_predictions",
    "draw_saliency",
    "evaluate",
    "evaluate_checkpoints",
    "find_neighbours",
    "load_recipe",
    "markdown",
    "nearest",
    "open_trained",
    "read_labels",
    "read_predictions",
    "read_real_labels",
    "score_labels",
    "some_predictions",
    "train",
    "write_confusion",
    "write_json",
    "write_predictions",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
