"""Every word and number that a public function or record takes is checked where it enters.

The cases are found by the annotations, so that a new one cannot be forgotten.
"""

import inspect
import math
import re
import types
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints
from unittest.mock import MagicMock

import numpy as np
import pytest

import pipeline
import trainer
from pipeline import (
    ColorNoise,
    EvalView,
    Options,
    Placement,
    ReadOptions,
    SourceOptions,
    TrainView,
    UsageError,
)
from trainer import (
    DistEnv,
    ExternalWeights,
    Preprocessing,
    Progress,
    Recipe,
    TrainJob,
    TrainResult,
    Validation,
)
from trainer.data import LoaderOptions
from trainer.distributed.env import Processes
from trainer.distributed.launch import launch
from trainer.inference.classify import classify_images
from trainer.inference.preprocess import crops_of_file
from trainer.recipe import Stage
from trainer.training.options import Debugging, Saving

RECIPE = Recipe(name="t", arch="alexnet", epochs=1, lr=0.1)
# Records that users make, with valid values.
RECORDS = [
    EvalView(),
    TrainView(),
    ColorNoise(np.zeros((3, 3), np.float32)),
    Placement(),
    ReadOptions(),
    Options(),
    SourceOptions(),
    pipeline.LocalExecutor(),
    pipeline.RayExecutor(),
    RECIPE,
    Stage(epoch=0),
    LoaderOptions(),
    Validation(),
    Saving(),
    Debugging(),
    TrainJob("data", Path("run"), RECIPE),
    TrainResult(Progress(0, 0, 0.0), "finished", ""),
    DistEnv(),
    Processes("cpu", 1, ""),
    Preprocessing((0, 0, 0), (1, 1, 1)),
    ExternalWeights("alexnet", Preprocessing((0, 0, 0), (1, 1, 1))),
]
# Records that only results, files and the trainer itself make.
RESULTS = {
    *(
        "Batch",
        "ClassMetrics",
        "Dataset",
        "MetricsRow",
        "Evaluation",
        "LabelScore",
        "LabelSet",
        "LoadedModel",
    ),
    *(
        "LoaderStats",
        "Manifest",
        "Metrics",
        "Neighbors",
        "Predictions",
        "Progress",
        "SharedClasses",
        "Source",
        "Statistics",
    ),
}
PUBLIC = [getattr(package, name) for package in (pipeline, trainer) for name in package.__all__]
FUNCTIONS = [
    *(value for value in PUBLIC if inspect.isfunction(value)),
    *(pipeline.Loader.__init__, trainer.PaperSGD.__init__, launch, classify_images, crops_of_file),
]


def literals(annotation):
    """The words of all literals in an annotation, however deep."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for part in get_args(annotation) for word in literals(part))


def is_number(annotation):
    union = get_origin(annotation) in (Union, types.UnionType)
    kinds = set(get_args(annotation) if union else (annotation,)) - {type(None)}
    return kinds in ({int}, {float})


FIELDS = [(record, name, hint) for record in RECORDS for name, hint in get_type_hints(type(record)).items()]
PARAMETERS = [
    (function, parameter.name, parameter.annotation)
    for function in FUNCTIONS
    for parameter in inspect.signature(function).parameters.values()
]


def call(function, name, value):
    """Call with a value for one argument, and stand-ins where others are required."""
    parameters = inspect.signature(function).parameters.values()
    needed = {
        p.name: 3 if is_number(p.annotation) else next(iter(literals(p.annotation)), MagicMock())
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    return function(**needed | {name: value})


def test_no_record_is_forgotten():
    records = {value.__name__ for value in PUBLIC if isinstance(value, type) and is_dataclass(value)}
    assert records <= {type(record).__name__ for record in RECORDS} | RESULTS


@pytest.mark.parametrize(
    ("record", "name", "words"),
    [(record, name, literals(hint)) for record, name, hint in FIELDS if literals(hint)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_records_words(record, name, words):
    """A word with a letter too many names the nearest one; None is refused unless it is allowed."""
    with pytest.raises(UsageError, match=f"did you mean '{re.escape(words[-1])}'"):
        replace(record, **{name: f"{words[-1]}x"})
    with pytest.raises(UsageError, match=f"{name} is 7; "):
        replace(record, **{name: 7})


@pytest.mark.parametrize(
    ("record", "name", "hint"),
    [(record, name, hint) for record, name, hint in FIELDS if is_number(hint)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_records_numbers(record, name, hint):
    for wrong in ("7", math.nan, True, *([1.5] if "int" in str(hint) else [])):
        with pytest.raises(UsageError, match=f"{name} is "):
            replace(record, **{name: wrong})


@pytest.mark.parametrize(
    ("function", "name", "hint"),
    [case for case in PARAMETERS if literals(case[2]) or is_number(case[2])],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__qualname__", "?"),
)
def test_a_functions_words_and_numbers(function, name, hint):
    words = literals(hint)
    wrong, message = (f"{words[-1]}x", f"did you mean '{words[-1]}'") if words else ("7", f"{name} is '7'")
    if get_origin(hint) not in (Literal, Union, types.UnionType, None):  # a sequence of words
        wrong = [wrong]
    with pytest.raises(UsageError, match=re.escape(message)):
        call(function, name, wrong)


@pytest.mark.parametrize(
    ("record", "changes"),
    [
        (EvalView(), {"crop": 0}),
        (TrainView(), {"std": (1.0, 0.0, 1.0)}),
        (TrainView(), {"mean": (1.0, math.nan, 1.0)}),
        (ColorNoise(np.zeros((3, 3), np.float32)), {"divisor": 0.0}),
        (Placement(), {"threads": 0}),
        (Placement(), {"hw_decoder_load": 1.5}),
        (LoaderOptions(), {"backend": "pillow"}),
        (ReadOptions(), {"cache_limit": 0}),
        (Options(), {"shard_samples": 0}),
        (Options(), {"size": 0}),
        (Options(), {"quality": 101}),
        (SourceOptions(), {"val_fraction": 1.0}),
        (SourceOptions(), {"fraction": 0.0}),
        (SourceOptions(), {"max_per_class": 0}),
        (Options(), {"max_megapixels": 0.0}),
        (pipeline.LocalExecutor(), {"workers": 0}),
        (LoaderOptions(), {"threads": 0}),
        (Validation(), {"every_steps": 0}),
        (Validation(), {"patience": 0}),
        (Saving(), {"keep": 0}),
        (Saving(), {"minutes": 0.0}),
        (Debugging(), {"steps": 0}),
        (TrainJob("data", Path("run"), RECIPE), {"hang_seconds": 0.0}),
        (DistEnv(), {"rank": 1}),
        (Processes("cpu", 1, ""), {"count": 0}),
        (Preprocessing((0, 0, 0), (1, 1, 1)), {"crop": 257}),
        (ExternalWeights("alexnet", Preprocessing((0, 0, 0), (1, 1, 1))), {"arch": "alexnet_bm"}),
        (Stage(epoch=0), {"layer_lr_factors": {"conv1": -1.0}}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else type(value).__name__,
)
def test_a_records_ranges(record, changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        replace(record, **changes)


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [
        (pipeline.prepare, "max_bad", 1.1),
        (pipeline.finish, "max_bad", -0.1),
        (pipeline.adopt, "size", 4),
        (pipeline.draw_demo, "seed", -1),
        (pipeline.draw_preview, "images", 0),
        (pipeline.choose_backend, "cores", 0),
        (pipeline.Loader.__init__, "global_batch", 0),
        (pipeline.open_loader, "threads", 0),
        (trainer.build_model, "arch", "alexnetbn"),
        (trainer.build_model, "classes", 1),
        (trainer.build_model, "width", 0.0),
        (trainer.build_model, "width", 9.0),
        (trainer.build_model, "crop", 63),
        (trainer.nearest, "count", 0),
        (trainer.evaluate_checkpoints, "batch_size", 0),
        (trainer.find_neighbors, "count", 0),
        (trainer.some_predictions, "count", 0),
        (trainer.draw_maps, "most", 0),
        (launch, "max_restarts", -1),
        (classify_images, "top", 0),
        (trainer.write_report, "skip", ["neighbours"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_a_functions_ranges(function, name, value):
    with pytest.raises(UsageError, match=name):
        call(function, name, value)
