"""Public names of `trainer`, and the modules that define them."""

from .callbacks.base import Callback as Callback
from .distributed.env import DistEnv as DistEnv
from .evaluation.evaluate import (
    ClassMetrics as ClassMetrics,
    Evaluation as Evaluation,
    SharedClasses as SharedClasses,
    evaluate as evaluate,
    evaluate_checkpoints as evaluate_checkpoints,
)
from .evaluation.label_sets import (
    LabelScore as LabelScore,
    LabelSet as LabelSet,
    read_labels as read_labels,
    read_real_labels as read_real_labels,
    score_labels as score_labels,
)
from .evaluation.metrics import Metrics as Metrics
from .evaluation.predictions import (
    Predictions as Predictions,
    read_predictions as read_predictions,
    write_predictions as write_predictions,
)
from .evaluation.results import (
    markdown as markdown,
    write_confusion as write_confusion,
    write_json as write_json,
)
from .figures.confusion import draw_confusion as draw_confusion
from .figures.curves import draw_curves as draw_curves
from .figures.filters import (
    draw_kernels as draw_kernels,
    draw_maps as draw_maps,
    draw_saliency as draw_saliency,
)
from .figures.predictions import draw_neighbors as draw_neighbors, draw_predictions as draw_predictions
from .inference.examples import some_predictions as some_predictions
from .inference.neighbors import (
    Neighbors as Neighbors,
    find_neighbors as find_neighbors,
    nearest as nearest,
)
from .models.alexnet import ARCHITECTURES as ARCHITECTURES, build_model as build_model
from .models.classifier import Classifier as Classifier
from .optim.optimizers import PaperSGD as PaperSGD
from .recipe import Recipe as Recipe, load_recipe as load_recipe
from .report.page import write_report as write_report
from .runs.external_weights import ExternalWeights as ExternalWeights, Preprocessing as Preprocessing
from .runs.load_model import (
    LoadedModel as LoadedModel,
    load_model as load_model,
    newest_run as newest_run,
)
from .runs.records import MetricsRow as MetricsRow, Progress as Progress, Validation as Validation
from .training.options import TrainJob as TrainJob, TrainResult as TrainResult
from .training.trainer import train as train
