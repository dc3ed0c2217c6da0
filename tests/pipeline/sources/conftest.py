"""What the tests of sources share."""

import functools

import pytest
from helpers.imagenet_files import sample_tree

from pipeline.sources.labelers import devkit


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """Class folders with ImageNet's names: three classes of 3 training and 2 validation files. Read-only."""
    return sample_tree(tmp_path_factory.mktemp("sources") / "tree")


read_classes = devkit.read_classes


@functools.cache
def classes_in(meta):
    return read_classes(meta, "a devkit")


@pytest.fixture
def scipy_once(monkeypatch):
    """Each distinct `meta.mat` is read by SciPy once a session, because its process takes a second."""
    monkeypatch.setattr(devkit, "read_classes", lambda meta, url: classes_in(meta))
