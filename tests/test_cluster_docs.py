"""The job array of docs/cluster.md, run as it stands under a stand-in for Slurm's sbatch."""

import os
import re
import subprocess
import sys
from pathlib import Path

from pipeline import Options, prepare, read_source

DOCS = Path(__file__).parents[1] / "docs" / "cluster.md"

# Runs jobs at once, one array task after the other, and logs what was asked of it; as Slurm does, it
# starts a job that depends on another only if that one succeeded.
SBATCH = """#!/usr/bin/env bash
set -eu
array= parsable= depends= wrap=
while [ $# -gt 0 ]; do
  case $1 in
    --parsable) parsable=1 ;;
    --array=*) array=${1#--array=} ;;
    --dependency=afterok:*) depends=${1#--dependency=afterok:} ;;
    --wrap) wrap=$2; shift ;;
    --job-name=*|--cpus-per-task=*|--mem=*|--time=*) ;;
    *) echo "sbatch: unknown option $1" >&2; exit 1 ;;
  esac
  shift
done
[ -z "$depends" ] || grep -qx "$depends ok" "$LOG"
id=$(( $(wc -l < "$LOG") + 100 ))
if [ -n "$array" ]; then
  for task in $(seq ${array%-*} ${array#*-}); do
    SLURM_ARRAY_TASK_ID=$task sh -c "$wrap" >> "$LOG.out" 2>&1
  done
else
  sh -c "$wrap" >> "$LOG.out" 2>&1
fi
echo "$id ok" >> "$LOG"
[ -z "$parsable" ] || echo "$id"
"""


def test_the_script_of_the_docs_prepares_a_dataset(tiny_source, tmp_path):
    script = re.search(r"```bash\n(#!.*?)```", DOCS.read_text(), re.DOTALL)[1]
    assert "alexnet-prep finish" in script
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "alexnet-prep": f"#!/bin/sh\nexec {sys.executable} -c 'from cli.prep import main; main()' \"$@\"\n",
        "prepare.sh": script,
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    source = tmp_path / "my pictures"
    source.symlink_to(tiny_source)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(log)}
    done = subprocess.run(
        ["prepare.sh", source, tmp_path / "out"], env=environment, capture_output=True, text=True, check=False
    )
    said = Path(f"{log}.out").read_text()
    assert (done.returncode, done.stderr) == (0, ""), said
    assert "task 15 of 16 done" in said
    assert said.splitlines()[-1].startswith(f"{tmp_path / 'out'}: no fault in 120 pictures")
    prepare(read_source(tiny_source), tmp_path / "whole", Options())
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()
