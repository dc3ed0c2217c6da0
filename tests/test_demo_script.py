"""`scripts/demo` with stand-ins for our commands: it replaces what it made, and nothing else."""

import shutil
import subprocess
from pathlib import Path

from helpers.folders import place, tree

ROOT = Path(__file__).parents[1]
# Makes the files that its arguments name, and refuses those that exist, as our commands do.
STAND_IN = """#!/bin/sh
for file; do
  case $file in *.png|*.json) if [ -e "$file" ]; then exit 2; fi; echo made >"$file";; esac
done
"""


def demo(root, *arguments):
    command = ["bash", root / "scripts" / "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).returncode


def test_it_replaces_and_removes_only_what_it_made(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "demo", tmp_path / "scripts")
    for name in ("alexnet-prep", "alexnet-train", "alexnet-eval", "python"):
        place(tmp_path / ".venv" / "bin" / name, STAND_IN.encode()).chmod(0o755)
    place(tmp_path / "scripts" / "setup", b"#!/bin/sh\n").chmod(0o755)
    work = tmp_path / "demo"
    assert demo(tmp_path) == 0
    made = set(tree(work))
    assert {"times", "crops.png", "center.json", "kernels.png", "ten-crop.json"} < made
    mine = [place(work / name) for name in ("notes.txt", "run/mine")]
    assert demo(tmp_path) == 0
    assert set(tree(work)) == made | {"notes.txt", "run/mine"}
    assert {path.read_bytes() for path in mine} == {b"not empty"}
    (work / ".alexnet-demo").write_text("times\n")  # so the other files are not the script's
    assert demo(tmp_path) == 2
    (work / ".alexnet-demo").unlink()
    before = tree(work)
    assert demo(tmp_path) == 2
    assert tree(work) == before
