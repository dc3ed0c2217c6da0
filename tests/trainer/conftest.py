"""Fixtures of the trainer's tests."""

from pathlib import Path

import pytest
import torch

from pipeline import Dataset
from trainer.models.classifier import Classifier, new_classifier
from trainer.recipe import Recipe
from trainer.runs import checkpoint


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from two threads, and other tests run beside this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """A network that trains for three epochs of the tiny dataset in seconds."""
    return Recipe(
        name="tiny",
        arch="alexnet_bn",
        epochs=3,
        lr=0.02,
        width=0.05,
        crop=64,
        batch_size=32,
        mean="image",
        compile=False,
    )


@pytest.fixture
def tiny_classifier(tiny_recipe: Recipe, tiny_dataset: Dataset) -> Classifier:
    """`tiny_recipe`'s classifier of the tiny dataset, untrained."""
    torch.manual_seed(0)
    return new_classifier(tiny_recipe, tiny_dataset)


@pytest.fixture
def tiny_checkpoint(tiny_classifier: Classifier, tmp_path: Path) -> Path:
    """`tiny_classifier` saved."""
    path = tmp_path / "tiny.pt"
    checkpoint.save(path, tiny_classifier)
    return path
