"""Models, optimisation and runs. Names resolve on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.classifier import Classifier
    from trainer.confusion import draw_confusion
    from trainer.curves import draw_curves
    from trainer.distributed import World
    from trainer.evaluation import Evaluation, Metrics, evaluate, evaluate_checkpoints
    from trainer.examples import find_neighbours, some_predictions
    from trainer.figures import draw_kernels, draw_maps, draw_saliency
    from trainer.loop import Job, Reporter, train
    from trainer.models import ARCHITECTURES, build_model
    from trainer.neighbours import Neighbours, nearest
    from trainer.optim import PaperSGD
    from trainer.recipe import Recipe, load_recipe
    from trainer.report import write_report
    from trainer.run import EpochRow, Progress
    from trainer.sheets import draw_neighbours, draw_predictions
    from trainer.trained import Trained, open_trained

_HOME = {
    "ARCHITECTURES": "models",
    "Classifier": "classifier",
    "EpochRow": "run",
    "Evaluation": "evaluation",
    "Job": "loop",
    "Metrics": "evaluation",
    "Neighbours": "neighbours",
    "PaperSGD": "optim",
    "Progress": "run",
    "Recipe": "recipe",
    "Reporter": "loop",
    "Trained": "trained",
    "World": "distributed",
    "build_model": "models",
    "draw_confusion": "confusion",
    "draw_curves": "curves",
    "draw_kernels": "figures",
    "draw_maps": "figures",
    "draw_neighbours": "sheets",
    "draw_predictions": "sheets",
    "draw_saliency": "figures",
    "evaluate": "evaluation",
    "evaluate_checkpoints": "evaluation",
    "find_neighbours": "examples",
    "load_recipe": "recipe",
    "nearest": "neighbours",
    "open_trained": "trained",
    "some_predictions": "examples",
    "train": "loop",
    "write_report": "report",
}

__all__ = [
    "ARCHITECTURES",
    "Classifier",
    "EpochRow",
    "Evaluation",
    "Job",
    "Metrics",
    "Neighbours",
    "PaperSGD",
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
    "nearest",
    "open_trained",
    "some_predictions",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
