"""Reports that the tests read, and a run whose names contain HTML, to test escaping."""

import dataclasses
import shutil

import pytest

from pipeline.dataset.manifest import write_manifest
from trainer import write_report


@pytest.fixture(scope="session")
def made(tiny_run, tmp_path_factory):
    """The report of the tiny run."""
    return write_report(tiny_run, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="session")
def hostile_text():
    """A name with HTML and mathtext markup."""
    return '<script>alert("1")</script>\'&amp;"$x_1$'


@pytest.fixture(scope="session")
def hostile_page(tiny_run, tiny_dataset, hostile_text, tmp_path_factory):
    """Page of a run in a folder with a hostile name, on data with hostile class names."""
    folder = tmp_path_factory.mktemp("hostile")
    run, data = folder / "<b>run & 'co'", folder / "<i>data"
    shutil.copytree(tiny_run, run)
    data.mkdir()
    for split in ("train", "val"):
        (data / split).symlink_to(tiny_dataset.root / split)
    classes = tuple(
        dataclasses.replace(info, name=f"{hostile_text} {k} 日本語\u202e\x1b[2J")
        for k, info in enumerate(tiny_dataset.manifest.classes)
    )
    write_manifest(data, dataclasses.replace(tiny_dataset.manifest, classes=classes))
    return write_report(run, folder / "report.html", data).file
