"""A killed run goes on elsewhere: one kill of those that `benchmarks/kills.py` makes by the dozen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.dali
@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_next_batch_on_other_processes_and_the_other_backend(
    tmp_path, monkeypatch
):
    """In float64 without dropout, so that the weights show every difference but rounding."""
    # Commands that other tests ran in this process have set it; the script imports from its own folder.
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    found = tmp_path / "found.json"
    options = ("--kills", "1", "--images", "320", "--epochs", "2", "--json", str(found))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "moving", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(found.read_text())["moving"]
    assert [(part["processes"], part["backend"]) for part in facts["parts"]] == [(1, "threads"), (2, "dali")]
    assert facts["parts"][0]["killed"] == "all"
    assert 0 < facts["parts"][1]["begun"] <= facts["parts"][0]["last"] + 1
    assert facts["same_batches"]
    assert facts["difference"] <= 1e-9
