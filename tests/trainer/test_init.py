"""The public names of `trainer`."""

import subprocess
import sys

import pytest

import trainer


def test_all_lists_exactly_the_names_that_resolve_lazily():
    assert trainer.__all__ == sorted(trainer._HOME)


@pytest.mark.parametrize("name", trainer.__all__)
def test_every_public_name_resolves_to_its_home(name):
    value = getattr(trainer, name)
    module = getattr(value, "__module__", None)
    assert module in (None, f"trainer.{trainer._HOME[name]}")


def test_the_public_names_are_these():
    assert set(trainer.__all__) == {
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
    }


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'trainer'.*'tarin'"):
        trainer.tarin  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_dali():
    code = "import sys, trainer; print([m for m in ('torch', 'nvidia.dali') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
