"""Fixtures of the tests that run our commands as processes under conditions of the outside world."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import Dataset


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter and write to; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="alexnet-faults-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def open_dataset(tiny_dataset: Dataset, open_folder: Path) -> Path:
    """A copy of the tiny dataset in `open_folder`, which every user can read."""
    return Path(shutil.copytree(tiny_dataset.root, open_folder / "dataset"))
