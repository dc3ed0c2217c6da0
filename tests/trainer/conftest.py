"""Fixtures for the trainer's tests."""

from pathlib import Path

import pytest
import torch

from pipeline import Dataset
from trainer.models.classifier import Classifier, new_classifier
from trainer.recipe import Recipe
from trainer.runs import checkpoint


@pytest.fixture(autouse=True)
def one_thread():
    """Limit torch to one thread: small tensors gain nothing from two, and tests run in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_classifier(tiny_recipe: Recipe, tiny_dataset: Dataset) -> Classifier:
    """An untrained classifier of `tiny_recipe` for the tiny dataset."""
    torch.manual_seed(0)
    return new_classifier(tiny_recipe, tiny_dataset)


@pytest.fixture
def tiny_checkpoint(tiny_classifier: Classifier, tmp_path: Path) -> Path:
    """Path of a checkpoint of `tiny_classifier`."""
    path = tmp_path / "tiny.pt"
    checkpoint.save(path, tiny_classifier)
    return path
