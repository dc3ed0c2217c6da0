"""What `scripts/test --no-dali` stands on: where PYTHONPATH says so, no process can import DALI."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest

HIDDEN = Path(__file__).parent / "helpers" / "no_dali"


@pytest.mark.no_dali
def test_no_child_can_import_dali(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HIDDEN), prepend=os.pathsep)
    code = "from pipeline.loader.placement import has_dali; assert not has_dali(); import nvidia.dali.fn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ModuleNotFoundError" in done.stderr
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        error = pool.submit(import_module, "nvidia.dali").exception()
    assert isinstance(error, ModuleNotFoundError)
