"""docs/evaluation.md names every option of `alexnet-eval`, every column of predictions, and all results."""

import re
from pathlib import Path

import numpy as np

from cli.eval import main as evaluate
from pipeline.dataset.manifest import ClassInfo
from trainer import Predictions, write_predictions
from trainer.evaluation.results import RESULTS

DOCS = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_every_option_is_described():
    options = {parameter.opts[0] for parameter in evaluate.params if parameter.param_type_name == "option"}
    missing = options - {*re.findall(r"--[a-z-]+", DOCS)} - {"--version"}
    assert not missing


def test_the_columns_of_predictions_are_those_written(tmp_path):
    predictions = Predictions(
        ("a",), np.array([0]), np.array([[0, 1]]), np.array([[0.5, 0.25]], dtype=np.float32)
    )
    write_predictions(tmp_path / "p.csv", predictions, [ClassInfo("x", "x"), ClassInfo("y", "y")])
    columns = (tmp_path / "p.csv").read_text().splitlines()[0].replace('"', "").split(",")
    named = re.findall(r"`([a-z]+_?[a-z]*)`", re.search(r"\| `key`.*?\n\n", DOCS, re.DOTALL)[0])
    expected = [name for name in named if not name.endswith("_k")]
    for k in ("1", "2"):
        expected += [name[:-1] + k for name in named if name.endswith("_k")]
    assert columns == expected


def test_published_results_are_those_printed():
    text = " ".join(DOCS.split())
    for result in RESULTS:
        assert re.search(rf"{100 * result.top1_error:.5g}0* / {100 * result.top5_error:.5g}0* %", text), (
            result
        )
