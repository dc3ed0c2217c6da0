"""Prepared datasets, for the tests of verification to damage."""

import shutil
from pathlib import Path

import pytest
from helpers.damage import prepared
from helpers.folders import SIZE, write_source


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Source of 24 training and 12 validation images in three classes."""
    return write_source(tmp_path_factory.mktemp("verification") / "source", width=SIZE + 12)


@pytest.fixture(scope="session")
def whole(photographs, tmp_path_factory):
    """Dataset of square images: five training and three validation shards. Read-only."""
    return prepared(photographs, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def whole_aspect(photographs, tmp_path_factory):
    return prepared(photographs, tmp_path_factory.mktemp("aspect"), keep_aspect=True)


@pytest.fixture(scope="session")
def whole_original(photographs, tmp_path_factory):
    return prepared(photographs, tmp_path_factory.mktemp("original"), keep_original=True)


@pytest.fixture
def data(whole, tmp_path):
    """A copy of `whole` that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "data"))
