"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pipeline import Dataset, Options, draw_demo, prepare, read_class_folders

# A busy machine is no failure, and a change shall not fail on an example that the last one did not meet.
settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images: `imagenet-sample/`, `clothing/` and `hostile/`."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("ALEXNET_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set ALEXNET_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 120 drawn pictures: 90 to train and 30 to validate, ten classes. Read-only."""
    folder = tmp_path_factory.mktemp("tiny") / "source"
    assert draw_demo(folder, images=120) == {"train": 90, "val": 30}
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tiny_source: Path) -> Dataset:
    """`tiny_source` prepared with pictures of 72 × 72 pixels. Read-only."""
    folder = tiny_source.parent / "dataset"
    prepare(read_class_folders(tiny_source), folder, Options(size=72))
    return Dataset.open(folder)
