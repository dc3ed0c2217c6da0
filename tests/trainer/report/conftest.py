"""A run whose names contain HTML, to test escaping."""

import dataclasses
import shutil

import pytest

from pipeline.dataset.manifest import write_manifest


@pytest.fixture
def hostile_text():
    """A name with HTML and mathtext markup."""
    return '<script>alert("1")</script>\'&amp;"$x_1$'


@pytest.fixture
def hostile(tiny_run, tiny_dataset, hostile_text, tmp_path):
    """A run in a folder with a hostile name, on data with hostile class names."""
    folder = tmp_path / "<b>run & 'co'"
    shutil.copytree(tiny_run, folder)
    data = tmp_path / "<i>data"
    data.mkdir()
    for split in ("train", "val"):
        (data / split).symlink_to(tiny_dataset.root / split)
    classes = tuple(
        dataclasses.replace(info, name=f"{hostile_text} {k} 日本語")
        for k, info in enumerate(tiny_dataset.manifest.classes)
    )
    write_manifest(data, dataclasses.replace(tiny_dataset.manifest, classes=classes))
    return folder, data
