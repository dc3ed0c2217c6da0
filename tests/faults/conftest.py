"""Fixtures of the tests that run our commands as processes under conditions of the outside world."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.folders import place

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


@pytest.fixture
def folder_of_namesakes(tmp_path: Path) -> Path:
    """A folder to run commands in, with modules named like ours and Python's, which cannot be imported."""
    folder = tmp_path / "namesakes"
    for name in ("pipeline/__init__.py", "trainer/__init__.py", "cli/__init__.py", "socket.py"):
        place(folder / name, b"raise ImportError('from the current folder')")
    return folder


@pytest.fixture
def renames_open_files(tmp_path: Path) -> dict[str, str]:
    """Environment variables of commands for which all file systems delete as NFS does."""
    compiler = shutil.which("gcc")
    if compiler is None or not Path("/proc/self/fd").exists():
        pytest.skip("needs gcc and /proc, to imitate NFS")
    library = tmp_path / "silly_rename.so"
    source = Path(__file__).with_name("silly_rename.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library)}
